"""`Family`: the functions that describe one chunk of a kernel family. A schedule combines them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._chunk import Chunk, Tokens, bonus_outputs
from ._decay import Decay
from ._rotation import Whole, all_of, rotation, unwound, whole


class Family(NamedTuple):
    """A kernel family. With the state `S` before a chunk `c`,

        outputs  = read(c, S)
        S        = decay * S + increment(c)         where `decay` is that of the sum of the chunk's log-decays

    A family may choose any layout for states and outputs; outputs have leading rows and a trailing `value`. These
    functions read after the update, and they never see a bonus or large angles of complex decays. `in_order` handles a
    whole chunk, including the bonus, the angles and invalid tokens.
    """

    name: str
    read: Callable[[Chunk, Array], Array]
    increment: Callable[[Chunk], Array]
    beside: Callable[[Array, Chunk], Array]  # numbers per head (and key) of a chunk, to a shape beside a state
    enter: Callable[[Array, int], Array]  # the public state layout and the number of groups, to the family's layout
    leave: Callable[[Array, tuple[int, ...]], Array]  # and back, to the public shape
    in_order: Callable[[Tokens, Array], tuple[Array, Array]] | None = None  # faster, if the state before is known

    def outputs(self, tokens: Tokens, state: Array) -> Array:
        """The outputs of a chunk, given the state before it."""
        chunk = tokens.chunk()
        plain, turned = unwound(chunk if chunk.bonus is None else chunk.one_token_late())
        outputs = turned(self.read(plain, state))
        return outputs if chunk.bonus is None else outputs + jnp.reshape(bonus_outputs(chunk), outputs.shape)

    def summary(self, tokens: Tokens) -> tuple[Decay, Array]:
        """The decay of a state over a chunk, and the increment of the chunk."""
        chunk = tokens.chunk()
        over = whole(chunk)
        increment = self.increment(unwound(chunk)[0])
        if over.steps is not None:
            increment = self.beside(rotation(over.steps, increment.dtype)[0], chunk) * increment
        return jax.tree.map(lambda part: self.beside(part, chunk), over.decay().apart()), increment

    def whole(self, tokens: Tokens) -> Whole:
        """The log-decay of a state over a chunk, beside a state."""
        chunk = tokens.chunk()
        return jax.tree.map(lambda part: self.beside(part, chunk), whole(chunk))

    def after(self, tokens: Tokens, state: Array) -> Array:
        """The state after a chunk, given the state before it."""
        if self.in_order is not None:
            return self.in_order(tokens, state)[1]
        decay, increment = self.summary(tokens)
        return decay(state, increment)

    def advance(self, tokens: Tokens, state: Array) -> tuple[Array, Array]:
        """The outputs of a chunk and the state after it, given the state before it."""
        if self.in_order is not None:
            return self.in_order(tokens, state)
        return self.outputs(tokens, state), self.after(tokens, state)


class Segment(NamedTuple):
    """Any number of chunks, as one map of the state."""

    over: Whole
    increment: Array
    """The state after the chunks, if the state before them is zero."""

    @classmethod
    def of(cls, chunks: Whole, increment: Array) -> "Segment":
        """The segment of chunks whose log-decays have a leading axis."""
        return cls(all_of(chunks), increment)

    def after(self, state: Array) -> Array:
        """The state after the chunks, given the state before them."""
        return self.over.decay()(state, self.increment)
