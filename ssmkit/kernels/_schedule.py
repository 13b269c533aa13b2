"""In which order the chunks of a sequence are computed: the only code that loops over chunks.

Both schedules are linear in the number of chunks, and both recompute a chunk's inside in the backward pass, its
coefficients included, so that nothing larger than the inputs and the state between chunks is saved.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jaxtyping import Array

from ._chunk import Tokens
from ._family import Family


Prepare: TypeAlias = Callable[[Any], Tokens]
Schedule: TypeAlias = Callable[[Family, Prepare, Any, Array], tuple[Array, Array]]


def serial(family: Family, prepare: Prepare, inputs: Any, state: Array) -> tuple[Array, Array]:
    """One chunk after the other: the working set of a chunk stays in a CPU's cache.

    **Arguments:** the family; the function that makes a chunk's tokens of their inputs; the inputs, with a leading
    `chunks` axis on every array; the state before the first chunk, in the family's layout.

    **Returns:** outputs with a leading `chunks` axis and the state after the last chunk.
    """

    def body(state, inputs):
        outputs, state = family.advance(prepare(inputs), state)
        return state, outputs

    state, outputs = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, inputs)  # pyright: ignore
    return outputs, state


def parallel(family: Family, prepare: Prepare, inputs: Any, state: Array) -> tuple[Array, Array]:
    """All chunks at once, but for the pass of the state over the chunks' summaries: for GPU and TPU.

    **Arguments:** and **Returns:** as `serial`.
    """

    def advance(state, summary):
        decay, increment = summary
        return decay(state, increment), state

    summarise = jax.vmap(lambda inputs: family.summary(prepare(inputs)))
    summaries = jax.checkpoint(summarise)(inputs)  # pyright: ignore[reportPrivateImportUsage]
    state, before = jax.lax.scan(advance, state, summaries)
    read = jax.vmap(lambda inputs, state: family.outputs(prepare(inputs), state))
    return jax.checkpoint(read)(inputs, before), state  # pyright: ignore[reportPrivateImportUsage]
