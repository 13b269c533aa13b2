"""Operators with a state along the sequence, from which mixers are composed."""

import abc
from typing import Generic, TypeVar

import equinox as eqx

from .._extent import Extent
from .._final import hook
from .._types import Valid


Input = TypeVar("Input")
Output = TypeVar("Output")
OperatorState = TypeVar("OperatorState")


class AbstractSequenceOperator(eqx.Module, Generic[Input, Output, OperatorState]):
    """A causal map along the sequence, with a state whose size only `reserve` changes; it is constant for recurrences.

    Laws, for every split of a sequence into `a` and `b`, with `++` joining along time:

    1. `chunk_scan(a)` equals `step` iterated over `a`, outputs and state.
    2. `chunk_scan(a ++ b, s)` equals `chunk_scan(b)` after `chunk_scan(a, s)`.
    3. Tokens at or past the extent's `length`, and a `step` with `valid=False`, leave the state unchanged bit for bit
       (except that a zero may lose its sign). Outputs at such tokens are unspecified but finite.
    4. Structure and dtypes of the state never change, and shapes only by `reserve`.
    6. A start forgets: `chunk_scan(a ++ b, s)` with a start at `b` gives the outputs of `chunk_scan(a, s)`, followed by
       the outputs and the state of `chunk_scan(b, init_state())`.
    7. `reserve` changes nothing but the room; within the room, all these laws hold.

    `ssmkit.DiagonalChunkedRecurrence` is the main operator of this package. `ssmkit.CausalConv1d`, `ssmkit.Shift`,
    `ssmkit.Stabiliser` and `ssmkit.RunningPhase` prepare its inputs.
    """

    @abc.abstractmethod
    def init_state(self) -> OperatorState:
        """The state before the first token."""

    @hook
    def reserve(self, state: OperatorState, tokens: int) -> OperatorState:
        """The same state with room for `tokens` more tokens. A state that does not store tokens is returned unchanged.

        **Arguments:**

        - `state`: the state of one sequence, or of rows with a leading axis on every array.
        - `tokens`: the number of tokens to come; a Python integer.

        **Returns:** the state. Under a trace, the number of earlier tokens is unknown, so the old room counts as full.

        **Raises:** `ValueError` when `tokens` is not a number of tokens.
        """
        return state

    @abc.abstractmethod
    def chunk_scan(
        self, inputs: Input, state: OperatorState, extent: Extent = Extent()
    ) -> tuple[Output, OperatorState]:
        """Run many tokens. Every array of `inputs` and outputs has a leading `time` axis.

        **Arguments:**

        - `inputs`: the inputs of `time` tokens.
        - `state`: the state before the first token.
        - `extent`: how many tokens count, and where new sequences start; by default all count, as one sequence.

        **Returns:** outputs and the state after the last token that counts.

        **Raises:** `ValueError` naming the argument when `inputs` or `state` are not those of this operator.
        """

    @abc.abstractmethod
    def step(self, inputs: Input, state: OperatorState, *, valid: Valid | None = None) -> tuple[Output, OperatorState]:
        """Run one token, at a cost that does not depend on the number of tokens before it.

        **Arguments:**

        - `inputs`: the inputs of one token, without a `time` axis.
        - `state`: the state before the token.
        - `valid`: a scalar boolean; if false, the state is returned unchanged. `None` means true.

        **Returns:** the output and the new state.

        **Raises:** as `chunk_scan`.
        """
