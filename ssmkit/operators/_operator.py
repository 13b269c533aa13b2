"""Operators with a state along the sequence: what a mixer is composed of."""

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
    """A causal map along the sequence with a state of a size fixed by `reserve`; constant for recurrences.

    Laws, for every split of a sequence into `a` and `b`, with `++` joining along time:

    1. `chunk_scan(a)` equals `step` iterated over `a`, outputs and state.
    2. `chunk_scan(a ++ b, s)` equals `chunk_scan(b)` after `chunk_scan(a, s)`.
    3. Tokens at or past the extent's `length`, and a `step` with `valid=False`, leave the state bit for bit as it was
       (but a zero may lose its sign). Outputs at such tokens are unspecified but finite.
    4. Structure and dtypes of the state never change, and shapes only by `reserve`.
    6. A start forgets: `chunk_scan(a ++ b, s)` with a start at `b` gives the outputs of `chunk_scan(a, s)` and then
       those of `chunk_scan(b, init_state())`, and the latter's state.
    7. `reserve` changes nothing but the room; within the room, all these laws hold.

    `ssmkit.DiagonalChunkedRecurrence` is the one this package is about; `ssmkit.CausalConv1d`, `ssmkit.Shift`,
    `ssmkit.Stabiliser` and `ssmkit.RunningPhase` prepare its inputs.
    """

    @abc.abstractmethod
    def init_state(self) -> OperatorState:
        """The state before the first token."""

    @hook
    def reserve(self, state: OperatorState, tokens: int) -> OperatorState:
        """The same state with room for so many tokens more: the state itself, unless it keeps tokens one by one.

        **Arguments:**

        - `state`: of one sequence, or of rows with a leading axis on every array.
        - `tokens`: how many are to come; a Python integer.

        **Returns:** the state. Under a trace, where nobody knows how many tokens came, the old room counts as full.

        **Raises:** `ValueError` when `tokens` is no number of tokens.
        """
        return state

    @abc.abstractmethod
    def chunk_scan(
        self, inputs: Input, state: OperatorState, extent: Extent = Extent()
    ) -> tuple[Output, OperatorState]:
        """Many tokens: `inputs` and outputs carry a leading `time` axis on every array.

        **Arguments:**

        - `inputs`: the inputs of `time` tokens.
        - `state`: the state before the first of them.
        - `extent`: how many of them count, and where new sequences start; by default all, and nowhere.

        **Returns:** outputs and the state after the last token that counts.

        **Raises:** `ValueError` naming the argument when `inputs` or `state` are not those of this operator.
        """

    @abc.abstractmethod
    def step(self, inputs: Input, state: OperatorState, *, valid: Valid | None = None) -> tuple[Output, OperatorState]:
        """One token, at a cost independent of how many came before.

        **Arguments:**

        - `inputs`: the inputs of one token, no `time` axis.
        - `state`: the state before it.
        - `valid`: a scalar boolean; where false, the state is returned as it was. `None` means true.

        **Returns:** the output and the new state.

        **Raises:** as `chunk_scan`.
        """
