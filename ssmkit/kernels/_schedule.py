"""Schedules: the order in which the chunks of a sequence are computed. No other code loops over chunks.

Both schedules are linear in the number of chunks. Both recompute the inside of a chunk in the backward pass,
coefficients included, so that only the inputs and the states between chunks are saved.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jaxtyping import Array

from ._chunk import Tokens
from ._family import Family


# So many states in a row are passed along without a loop: a GPU runs a loop from the host, and its passes are short.
_UNROLLED = 16

Prepare: TypeAlias = Callable[[Any], Tokens]
Schedule: TypeAlias = Callable[[Family, Prepare, Any, Array], tuple[Array, Array]]


def serial(family: Family, prepare: Prepare, inputs: Any, state: Array) -> tuple[Array, Array]:
    """Compute one chunk after the other. The working set of a chunk then stays in a CPU's cache.

    **Arguments:** the family; the function from a chunk's inputs to its tokens; the inputs, with a leading `chunks`
    axis on every array; the state before the first chunk, in the family's layout.

    **Returns:** outputs with a leading `chunks` axis and the state after the last chunk.
    """

    def body(state, inputs):
        outputs, state = family.advance(prepare(inputs), state)
        return state, outputs

    state, outputs = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, inputs)  # pyright: ignore
    return outputs, state


def parallel(family: Family, prepare: Prepare, inputs: Any, state: Array) -> tuple[Array, Array]:
    """Compute all chunks at once, except the pass of the state over the chunks' summaries. It suits GPU and TPU.

    **Arguments:** and **Returns:** as `serial`.
    """

    def advance(state, summary):
        decay, increment = summary
        return decay(state, increment), state

    summarise = jax.vmap(lambda inputs: family.summary(prepare(inputs)))
    summaries = jax.checkpoint(summarise)(inputs)  # pyright: ignore[reportPrivateImportUsage]
    chunks = len(jax.tree.leaves(summaries)[0])
    state, before = jax.lax.scan(advance, state, summaries, unroll=min(chunks, _UNROLLED))
    read = jax.vmap(lambda inputs, state: family.outputs(prepare(inputs), state))
    return jax.checkpoint(read)(inputs, before), state  # pyright: ignore[reportPrivateImportUsage]
