"""Long sequences over several devices: each holds an equal slice of the tokens, along the mesh axis `sequence`.

A segment of any length is one map of the state. Every device summarises its slice by such a map, all devices exchange
their summaries, once, and each then knows the state before its slice. Its outputs follow as on one device.

The exchange is a sum in which every device adds its own summary at its own place. Unlike a gather in a program that
names one axis only, a sum leaves other axes of the mesh as they are: rows over `data`, heads over `model`.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, PyTree, Shaped

from ._extent import CheckedExtent
from ._sharding import axis_size
from ._types import at_least_float32


AXIS = "sequence"

_UNROLLED = 16  # so many summaries are applied without a loop

State = TypeVar("State")
Summary = TypeVar("Summary")


Exchange: TypeAlias = Callable[
    [State, Callable[[], Summary], Callable[[State, Summary], State]], tuple[State, Callable[[State], State]]
]
"""The way in which a scan over a slice of the tokens learns the state before it.

**Arguments:** the state before all slices; a function that makes the summary of this slice, a tree of small arrays,
which is called only if there are other slices; and a function from the state before a slice and its summary to the
state after it. A number in a summary that is no array is the same for all slices.

**Returns:** the state before this slice, and a function from the state after it to that after all slices.
"""


def alone(
    state: State, summarise: Callable[[], Summary], after: Callable[[State, Summary], State]
) -> tuple[State, Callable[[State], State]]:
    """The `Exchange` of a slice that is the whole sequence."""
    return state, lambda own: own


def is_spread() -> bool:
    """Whether tokens are spread over several devices."""
    return axis_size(AXIS) > 1


def at_token(x: Shaped[Array, "time ..."], index: Int[Array, ""] | int) -> Shaped[Array, "..."]:
    """One token's entries. An array that is spread by slices of time is not gathered for it."""
    if not is_spread():
        return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
    here = jnp.reshape(jnp.arange(x.shape[0], dtype=jnp.int32) == index, (-1,) + (1,) * (x.ndim - 1))
    return jnp.sum(jnp.where(here, x, jnp.zeros_like(x)), axis=0)


def in_slices(
    scan: Callable[[Any, PyTree, Any, CheckedExtent, Exchange], tuple[PyTree, Any]],
    operator: PyTree,
    inputs: PyTree,
    state: Any,
    extent: CheckedExtent,
) -> tuple[PyTree, Any]:
    """Run an operator over many tokens, in slices if the mesh in force has an axis `sequence`.

    **Arguments:**

    - `scan`: `scan(operator, inputs, state, extent, exchange)`, which returns outputs and the state after them.
    - `operator`: what else the scan needs: arrays in it are the same on all devices.
    - `inputs`: the inputs, with a leading axis `time` on every array, of which there is at least one.
    - `state`: the state before the first token.
    - `extent`: which tokens count, and where sequences start.

    **Returns:** as `scan`.
    """
    if not is_spread() or jax.tree.leaves(inputs)[0].shape[0] == 0:
        return scan(operator, inputs, state, extent, alone)
    return _in_slices(scan, operator, inputs, state, extent)


@eqx.filter_jit
def _in_slices(scan: Callable[..., Any], operator: PyTree, inputs: PyTree, state: Any, extent: CheckedExtent) -> Any:
    inputs, (length, starts) = jax.tree.map(jnp.asarray, inputs), extent
    devices, time = axis_size(AXIS), jax.tree.leaves(inputs)[0].shape[0]
    size = -(-time // devices)
    if size * devices > time:  # tokens that do not count fill the last slices
        length = jnp.asarray(extent.stop(time), jnp.int32)
        inputs = jax.tree.map(lambda x: _padded(x, size * devices, x[-1]), inputs)
        starts = None if starts is None else _padded(starts, size * devices, jnp.zeros((), bool))
    arrays, rest = eqx.partition(operator, eqx.is_array)
    dtypes = jax.tree.map(lambda x: x.dtype, arrays)
    wide = jax.tree.map(_widened, arrays)  # the devices' gradients are added in float32, whatever the dtype

    def local(wide, inputs, state, length, starts):
        arrays = jax.tree.map(lambda x, dtype: x.astype(dtype), wide, dtypes)
        index = jax.lax.axis_index(AXIS)
        if length is not None:
            length = jnp.clip(length - (index * size).astype(length.dtype), 0, size)
        extent = CheckedExtent(length, starts)
        return scan(eqx.combine(arrays, rest), inputs, state, extent, functools.partial(_exchange, index, devices))

    own, same = PartitionSpec(AXIS), PartitionSpec()
    run = jax.shard_map(
        local,
        in_specs=(same, own, same, same, own),
        out_specs=(own, same),
        axis_names={AXIS},
        check_vma=False,
    )
    outputs, state = run(wide, inputs, state, length, starts)
    return jax.tree.map(lambda y: y[:time], outputs), state


def _padded(x: Array, size: int, fill: Array) -> Array:
    return jnp.concatenate([x, jnp.broadcast_to(fill, (size - x.shape[0], *x.shape[1:]))])


def _widened(x: Array) -> Array:
    return x.astype(at_least_float32(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _exchange(
    index: Int[Array, ""],
    devices: int,
    state: State,
    summarise: Callable[[], Summary],
    after: Callable[[State, Summary], State],
) -> tuple[State, Callable[[State], State]]:
    """The `Exchange` of the slice of one device."""

    def one(carry, other):
        (state, before), (place, summary) = carry, other
        before = jax.tree.map(lambda now, then: jnp.where(place == index, now, then), state, before)
        return (after(state, eqx.combine(summary, same)), before), None

    places = jnp.arange(devices, dtype=index.dtype)
    own, same = eqx.partition(summarise(), eqx.is_array)
    summaries = jax.tree.map(functools.partial(_everyones, places == index), own)
    (final, before), _ = jax.lax.scan(one, (state, state), (places, summaries), unroll=min(devices, _UNROLLED))
    return before, lambda own: final


def _everyones(here: Array, own: Array) -> Array:
    """The arrays of all devices, with a leading axis. All go as floats of one dtype, so that XLA sends them at once."""
    if jnp.iscomplexobj(own):
        return jax.lax.complex(_everyones(here, jnp.real(own)), _everyones(here, jnp.imag(own)))
    sent = own if jnp.issubdtype(own.dtype, jnp.floating) else own.astype(jnp.float32)
    here = jnp.reshape(here, (-1,) + (1,) * own.ndim)
    return jax.lax.psum(jnp.where(here, sent[None], jnp.zeros_like(sent)[None]), AXIS).astype(own.dtype)
