"""What a kernel family is: one chunk, described by functions that a schedule combines."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ._chunk import Chunk, bonus_outputs


class Family(NamedTuple):
    """With the state `S` before a chunk `c`,

        outputs  = within(c) + carried(c, S)
        S        = decay * S + increment            where decay, increment = summary(c)

    States and outputs may have any layout the family likes, outputs with leading rows and a trailing `value`. These
    functions read after the update and need not know of a bonus; `in_order` does all at once, bonus included.
    """

    name: str
    within: Callable[[Chunk], Array]
    carried: Callable[[Chunk, Array], Array]
    summary: Callable[[Chunk], tuple[Array, Array]]
    enter: Callable[[Array, int], Array]  # the public state layout and the number of groups, to the family's layout
    leave: Callable[[Array, tuple[int, ...]], Array]  # and back, to the public shape
    in_order: Callable[[Chunk, Array], tuple[Array, Array]] | None = None  # faster, where the state before is at hand

    def outputs(self, chunk: Chunk, state: Array) -> Array:
        """The outputs of a chunk, given the state before it."""
        if chunk.bonus is None:
            return self.within(chunk) + self.carried(chunk, state)
        late = chunk.one_token_late()
        outputs = self.within(late) + self.carried(late, state)
        return outputs + jnp.reshape(bonus_outputs(chunk), outputs.shape)

    def advance(self, chunk: Chunk, state: Array) -> tuple[Array, Array]:
        """The outputs of a chunk and the state after it, given the state before it."""
        if self.in_order is not None:
            return self.in_order(chunk, state)
        decay, increment = self.summary(chunk)
        return self.outputs(chunk, state), decay * state + increment
