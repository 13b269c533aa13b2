"""In which order the chunks of a sequence are computed: the only code that loops over chunks.

A kernel family describes one chunk by three functions; a schedule combines them. With a chunk's coefficients `c` and
the state `S` before it,

    outputs  = within(c) + carried(c, S)
    S        = decay * S + increment            where decay, increment = summary(c)

Both schedules are linear in the number of chunks, and both recompute a chunk's inside in the backward pass, so that
nothing of size `heads x chunk x chunk` is saved.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._coefficients import Coefficients


class Family(NamedTuple):
    """One chunk of a kernel family. States and outputs may have any layout the family likes."""

    within: Callable[[Coefficients], Array]
    carried: Callable[[Coefficients, Array], Array]
    summary: Callable[[Coefficients], tuple[Array, Array]]


Schedule: TypeAlias = Callable[[Family, Coefficients, Array], tuple[Array, Array]]


def serial(family: Family, chunks: Coefficients, state: Array) -> tuple[Array, Array]:
    """One chunk after the other: the working set of a chunk stays in a CPU's cache.

    **Arguments:** coefficients with leading `(chunks, time)` axes; the state before the first chunk.

    **Returns:** outputs with leading `(chunks, time)` axes and the state after the last chunk.
    """

    def body(state, chunk):
        outputs = family.within(chunk) + family.carried(chunk, state)
        decay, increment = family.summary(chunk)
        return decay * state + increment, outputs

    state, outputs = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, chunks)  # pyright: ignore
    return outputs, state


def parallel(family: Family, chunks: Coefficients, state: Array) -> tuple[Array, Array]:
    """All chunks at once, but for the pass of the state over the chunks' summaries: for GPU and TPU.

    **Arguments:** and **Returns:** as `serial`.
    """

    def body(state, summary):
        decay, increment = summary
        return decay * state + increment, state

    summaries = jax.checkpoint(jax.vmap(family.summary))(chunks)  # pyright: ignore[reportPrivateImportUsage]
    state, before = jax.lax.scan(body, state, summaries)
    inside = jax.checkpoint(jax.vmap(lambda c, s: family.within(c) + family.carried(c, s)))  # pyright: ignore
    return inside(chunks, before), state


def backend_schedule() -> Schedule:
    """The schedule that suits the default backend."""
    return serial if jax.default_backend() == "cpu" else parallel


def backend_chunk_size() -> int:
    """The chunk length that suits the default backend: CPUs want a chunk's scores to stay in cache."""
    return 64 if jax.default_backend() == "cpu" else 128


def split(coefficients: Coefficients, chunk_size: int) -> Coefficients:
    """Cut the leading `time` axis into `(chunks, chunk_size)`, filling up with identity steps (all zeros)."""

    def cut(array: Array) -> Array:
        padding = -array.shape[0] % chunk_size
        array = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return jnp.reshape(array, (array.shape[0] // chunk_size, chunk_size, *array.shape[1:]))

    return jax.tree.map(cut, coefficients)
