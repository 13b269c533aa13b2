r"""Family K1: one scalar decay per head. Everything is a matrix product (the SSD form, arXiv 2405.21060, section 6).

With the decay $L_{ij} = \exp(a_{j+1} + .. + a_i)$ from token j to token i of one chunk,

    within    y_i = sum_{j<=i} (q_i . k_j) L_ij v_j
    carried   y_i = exp(a_1 + .. + a_i) q_i^T S
    increment sum_j k_j (exp(a_{j+1} + .. + a_Q) v_j)^T

Every exponent is at most 0. The code treats the heads of one group, which share `read` and `write`. All heads' reads of
the state are one matrix product, and so are all their writes. Groups are mapped over. A single group is not, because
XLA's CPU backend copies arrays for an axis of size 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._chunk import Chunk
from ._family import Family
from ._pairwise_decays import pairwise_decays, suffix_sums
from ._platform import TILE, platform
from ._precision import product


class _Group(NamedTuple):
    """The part of a chunk that belongs to the heads of one group."""

    log_decay: Inexact[Array, "time heads"]
    write: Inexact[Array, "writes key"]
    value: Inexact[Array, "writes heads value"]
    read: Inexact[Array, "reads key"]


def _by_group(function: Callable[..., Array], chunk: Chunk, *state: Array, out: int) -> Array:
    """Apply a function of one group to each. Groups are the second axis of all rows, and the first of a state.

    **Arguments:** the function, the chunk, the state if the function takes one, and the axis of groups in its result.
    """
    if chunk.groups == 1:
        return function(_Group(chunk.log_decay[..., 0], chunk.write[:, 0], chunk.value, chunk.read[:, 0]), *state)
    members = lambda array: einops.rearrange(array, "t (g m) x -> t g m x", g=chunk.groups)
    groups = _Group(members(chunk.log_decay)[..., 0], chunk.write, members(chunk.value), chunk.read)
    return jax.vmap(function, in_axes=(1, *[0] * len(state)), out_axes=out)(groups, *state)


def _decays(group: _Group) -> Inexact[Array, "heads time"]:
    return jnp.swapaxes(group.log_decay, 0, 1)


def _rows(per_token: Inexact[Array, "heads time"], rows: int) -> Inexact[Array, "rows heads 1"]:
    return einops.repeat(per_token, "m t -> (t r) m 1", r=rows // per_token.shape[1])


def _within(group: _Group) -> Inexact[Array, "reads heads value"]:
    decay = pairwise_decays(_decays(group))
    reads, writes = group.read.shape[0] // decay.shape[-1], group.write.shape[0] // decay.shape[-1]
    if (reads, writes) != (1, 1):
        decay = einops.repeat(decay, "m i j -> m (i q) (j r)", q=reads, r=writes)
    scores = product("ik,jk->ij", group.read, group.write)
    return product("mij,jmv->imv", scores[None] * decay, group.value)


def _carried(group: _Group, state: Array) -> Inexact[Array, "reads heads value"]:
    decay = jnp.exp(jnp.cumsum(_decays(group), axis=-1))
    return _rows(decay, group.read.shape[0]) * _layout(group.read.shape[1]).read(group.read, state)


def _increment(group: _Group) -> Array:
    until_end = jnp.exp(suffix_sums(_decays(group)))
    weighted = _rows(until_end, group.write.shape[0]) * group.value
    return _layout(group.write.shape[1]).write(group.write, weighted)


# Layouts of states.


class _Layout(NamedTuple):
    """The order of a state's axes, and its products with all rows' reads and writes."""

    axes: str
    """The axes m (heads), k (key) and v (value)."""
    read: Callable[[Array, Array], Inexact[Array, "reads heads value"]]
    write: Callable[[Array, Array], Array]


def _read_by_channel(read: Inexact[Array, "reads key"], state: Inexact[Array, "heads value key"]) -> Array:
    channels = product("xk,ik->xi", einops.rearrange(state, "m v k -> (m v) k"), read)
    return einops.rearrange(channels, "(m v) i -> i m v", m=state.shape[0])


def _write_by_channel(write: Inexact[Array, "writes key"], value: Inexact[Array, "writes heads value"]) -> Array:
    channels = product("jx,jk->xk", einops.rearrange(value, "j m v -> j (m v)"), write)
    return einops.rearrange(channels, "(m v) k -> m v k", m=value.shape[1])


_BY_KEY = _Layout(
    "k m v",
    read=lambda read, state: product("ik,kmv->imv", read, state),
    write=lambda write, value: product("jk,jmv->kmv", write, value),
)
_BY_CHANNEL = _Layout("m v k", read=_read_by_channel, write=_write_by_channel)


def _layout(key: int) -> _Layout:
    """A TPU stores tokens, and keys by the tile, along lanes: in another order, it copies every state and output."""
    return _BY_CHANNEL if platform() == "tpu" and key % TILE == 0 else _BY_KEY


def _beside(per_head: Inexact[Array, "heads 1"], chunk: Chunk) -> Array:
    axes = _layout(chunk.write.shape[-1]).axes
    return _by_axes(per_head, "1", axes.replace("k", "1").replace("v", "1"), chunk.groups)


def _enter(state: Inexact[Array, "heads key value"], groups: int) -> Array:
    return _by_axes(state, "k v", _layout(state.shape[1]).axes, groups)


def _by_axes(array: Inexact[Array, "heads ..."], before: str, after: str, groups: int) -> Array:
    """The array with its axes in another order, and with an axis of groups in front if there are several."""
    if groups == 1:
        return einops.rearrange(array, f"m {before} -> {after}")
    return einops.rearrange(array, f"(g m) {before} -> g {after}", g=groups)


def _leave(state: Array, shape: tuple[int, ...]) -> Inexact[Array, "heads key value"]:
    axes = _layout(shape[1]).axes
    return einops.rearrange(state, f"{axes} -> m k v" if state.ndim == 3 else f"g {axes} -> (g m) k v")


SCALAR_DECAY = Family(
    name="K1, one decay per head",
    read=lambda chunk, state: _by_group(_within, chunk, out=1) + _by_group(_carried, chunk, state, out=1),
    increment=lambda chunk: _by_group(_increment, chunk, out=0),
    beside=_beside,
    enter=_enter,
    leave=_leave,
)
