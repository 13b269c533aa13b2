"""Running quantities of the inputs that a recurrence's coefficients are made of: a maximum and a phase."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._operator import AbstractSequenceOperator
from ._types import Length, Valid, check_length


class Gates(NamedTuple):
    """Logarithms of the gates of one token, or of many; neither is bounded above."""

    forget: Float[Array, "*time heads"]
    input: Float[Array, "*time heads"]


class StabilisedGates(NamedTuple):
    """The same gates relative to $e^{m}$: both exponents at most 0."""

    log_decay: Float[Array, "*time heads"]
    log_write: Float[Array, "*time heads"]
    log_scale: Float[Array, "*time heads"]


class Stabiliser(AbstractSequenceOperator[Gates, StabilisedGates, Float[Array, " heads"]]):
    r"""Keeps exponential gates in range by a running maximum (xLSTM, arXiv 2405.04517, equations 15 to 17).

    $$m_t = \max(f_t + m_{t-1}, i_t), \qquad a_t = f_t + m_{t-1} - m_t \le 0, \qquad w_t = i_t - m_t \le 0$$

    A recurrence with log-decay $a$ and writes scaled by $e^{w}$ holds $e^{-m_t}$ times the state that $f$ and $i$
    themselves would give. Outputs are $a$, $w$ and $m$; the state is $m$, float32, at first 0.
    """

    heads: int = eqx.field(static=True)

    def init_state(self) -> Float[Array, " heads"]:
        """Zeros: an empty state is in range at any scale."""
        return jnp.zeros((self.heads,), jnp.float32)

    def chunk_scan(
        self, inputs: Gates, state: Float[Array, " heads"], *, length: Length | None = None
    ) -> tuple[StabilisedGates, Float[Array, " heads"]]:
        """As `AbstractSequenceOperator.chunk_scan`."""
        valid = _valid(inputs.forget.shape[0], length)
        forget, write = (gate.astype(state.dtype) for gate in inputs)
        forget = jnp.where(valid, forget, jnp.zeros_like(forget))
        forgotten, maximum = jax.lax.associative_scan(
            lambda a, b: (a[0] + b[0], jnp.maximum(a[1] + b[0], b[1])),
            (forget, jnp.where(valid, write, jnp.full_like(write, -jnp.inf))),
        )
        maximum = jnp.maximum(state[None] + forgotten, maximum)
        before = jnp.concatenate([state[None], maximum])
        return _relative(forget + before[:-1], write), before[-1]

    def step(
        self, inputs: Gates, state: Float[Array, " heads"], *, valid: Valid | None = None
    ) -> tuple[StabilisedGates, Float[Array, " heads"]]:
        """As `AbstractSequenceOperator.step`."""
        forget, write = (gate.astype(state.dtype) for gate in inputs)
        gates = _relative(forget + state, write)
        return gates, gates.log_scale if valid is None else jnp.where(valid, gates.log_scale, state)


def _relative(kept: Array, written: Array) -> StabilisedGates:
    """Of the two exponents one is exactly 0: taken from their difference, not from the maximum."""
    excess = written - kept
    return StabilisedGates(
        log_decay=jnp.minimum(-excess, jnp.zeros_like(excess)),
        log_write=jnp.minimum(excess, jnp.zeros_like(excess)),
        log_scale=jnp.maximum(kept, written),
    )


class RunningPhase(AbstractSequenceOperator[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]):
    r"""$p_t = p_{t-1} + \delta_t \bmod 1$, in turns: the angle of a data-dependent rotation (Mamba-3).

    In turns, unlike in radians, leaving out the whole ones is exact, so a phase never loses digits to its size. What
    remains is the rounding of each addition, 3e-8 turns at most: after 32000 steps of the same size a phase is off by
    up to 3e-4 turns. The state is $p$ in $[-1/2, 1/2]$, float32.

    **Arguments:**

    - `shape`: of one token's phases.
    """

    shape: tuple[int, ...] = eqx.field(static=True)

    def init_state(self) -> Float[Array, "..."]:
        """Zeros."""
        return jnp.zeros(self.shape, jnp.float32)

    def chunk_scan(
        self, inputs: Float[Array, "time ..."], state: Float[Array, "..."], *, length: Length | None = None
    ) -> tuple[Float[Array, "time ..."], Float[Array, "..."]]:
        """As `AbstractSequenceOperator.chunk_scan`."""
        valid = _valid(inputs.shape[0], length)
        turns = jnp.where(jnp.reshape(valid, (-1,) + (1,) * state.ndim), inputs.astype(state.dtype), 0.0)
        phase = jax.lax.associative_scan(lambda a, b: _wrap(a + b), turns)
        phase = _wrap(phase + state[None])
        return phase, jnp.concatenate([state[None], phase])[-1]

    def step(
        self, inputs: Float[Array, "..."], state: Float[Array, "..."], *, valid: Valid | None = None
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """As `AbstractSequenceOperator.step`."""
        phase = _wrap(state + inputs.astype(state.dtype))
        return phase, phase if valid is None else jnp.where(valid, phase, state)


def _wrap(turns: Array) -> Array:
    return turns - jax.lax.stop_gradient(jnp.round(turns))


def _valid(time: int, length: Length | None) -> Array:
    stop = time if length is None else check_length(length, time)
    return (jnp.arange(time, dtype=jnp.int32) < stop)[:, None]
