"""Schedules: the order in which the chunks of a sequence are computed. No other code loops over chunks.

Both schedules are linear in the number of chunks. Both recompute the inside of a chunk in the backward pass,
coefficients included, so that only the inputs and the states between chunks are saved. If other devices have other
chunks of the sequence, a schedule first makes one map of its own; in the backward pass, that is recomputed as a whole.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._chunk import Tokens
from ._family import Family, Segment


# So many states in a row are passed along without a loop: a GPU runs a loop from the host, and its passes are short.
_UNROLLED = 16

Prepare: TypeAlias = Callable[[Any], Tokens]


class Schedule(NamedTuple):
    """An order of the chunks of a sequence."""

    run: Callable[[Family, Prepare, Any, Array], tuple[Array, Array]]
    """The outputs, with a leading `chunks` axis, and the state after the last chunk.

    **Arguments:** the family; the function from a chunk's inputs to its tokens; the inputs, with a leading `chunks`
    axis on every array; the state before the first chunk, in the family's layout.
    """
    segment: Callable[[Family, Prepare, Any, Array], Segment]
    """All chunks as one map of the state, with the same arguments; of the state, only the form counts."""


def _serial(family: Family, prepare: Prepare, inputs: Any, state: Array) -> tuple[Array, Array]:
    def body(state, inputs):
        outputs, state = family.advance(prepare(inputs), state)
        return state, outputs

    state, outputs = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, inputs)  # pyright: ignore
    return outputs, state


def _serial_segment(family: Family, prepare: Prepare, inputs: Any, state: Array) -> Segment:
    def body(state, inputs):
        tokens = prepare(inputs)
        return family.after(tokens, state), family.whole(tokens)

    def run(inputs):
        body_again = jax.checkpoint(body, prevent_cse=False)  # pyright: ignore[reportPrivateImportUsage]
        increment, chunks = jax.lax.scan(body_again, jnp.zeros_like(state), inputs)
        return Segment.of(chunks, increment)

    return jax.checkpoint(run)(inputs)  # pyright: ignore[reportPrivateImportUsage]


def _pass_along(summaries: Any, state: Array) -> tuple[Array, Array]:
    """The state after all chunks, and those before each, from the chunks' summaries."""

    def advance(state, summary):
        decay, increment = summary
        return decay(state, increment), state

    chunks = len(jax.tree.leaves(summaries)[0])
    return jax.lax.scan(advance, state, summaries, unroll=min(chunks, _UNROLLED))


def _parallel(family: Family, prepare: Prepare, inputs: Any, state: Array) -> tuple[Array, Array]:
    summarise = jax.vmap(lambda inputs: family.summary(prepare(inputs)))
    summaries = jax.checkpoint(summarise)(inputs)  # pyright: ignore[reportPrivateImportUsage]
    state, before = _pass_along(summaries, state)
    read = jax.vmap(lambda inputs, state: family.outputs(prepare(inputs), state))
    return jax.checkpoint(read)(inputs, before), state  # pyright: ignore[reportPrivateImportUsage]


def _parallel_segment(family: Family, prepare: Prepare, inputs: Any, state: Array) -> Segment:
    def summarise(inputs):
        tokens = prepare(inputs)
        return family.summary(tokens), family.whole(tokens)

    def run(inputs):
        summaries, chunks = jax.vmap(summarise)(inputs)
        return Segment.of(chunks, _pass_along(summaries, jnp.zeros_like(state))[0])

    return jax.checkpoint(run)(inputs)  # pyright: ignore[reportPrivateImportUsage]


serial = Schedule(_serial, _serial_segment)
"""One chunk after the other. The working set of a chunk then stays in a CPU's cache."""

parallel = Schedule(_parallel, _parallel_segment)
"""All chunks at once, except the pass of the state over the chunks' summaries. It suits GPU and TPU."""
