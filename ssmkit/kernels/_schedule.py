"""In which order the chunks of a sequence are computed: the only code that loops over chunks.

A kernel family describes one chunk by three functions; a schedule combines them. With a chunk `c` and the state `S`
before it,

    outputs  = within(c) + carried(c, S)
    S        = decay * S + increment            where decay, increment = summary(c)

Both schedules are linear in the number of chunks, and both recompute a chunk's inside in the backward pass, so that
nothing of size `heads x chunk x chunk` is saved: only the state between chunks.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
from jaxtyping import Array

from ._chunk import Chunk


class Family(NamedTuple):
    """One chunk of a kernel family. States and outputs may have any layout the family likes."""

    within: Callable[[Chunk], Array]
    carried: Callable[[Chunk, Array], Array]
    summary: Callable[[Chunk], tuple[Array, Array]]
    enter: Callable[[Array, int], Array]  # the public state layout and the number of groups, to the family's layout
    leave: Callable[[Array], Array]  # and back


Schedule: TypeAlias = Callable[[Family, Chunk, Array], tuple[Array, Array]]


def serial(family: Family, chunks: Chunk, state: Array) -> tuple[Array, Array]:
    """One chunk after the other: the working set of a chunk stays in a CPU's cache.

    **Arguments:** chunks with a leading `chunks` axis; the state before the first one, in the family's layout.

    **Returns:** outputs with a leading `chunks` axis and the state after the last chunk.
    """

    def body(state, chunk):
        outputs = family.within(chunk) + family.carried(chunk, state)
        decay, increment = family.summary(chunk)
        return decay * state + increment, outputs

    state, outputs = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, chunks)  # pyright: ignore
    return outputs, state


def parallel(family: Family, chunks: Chunk, state: Array) -> tuple[Array, Array]:
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
