"""Running quantities of the inputs, from which coefficients are computed: a maximum and a phase."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._construction import check_shape, check_sizes
from .._extent import CheckedExtent, Extent, extent_of
from .._sharding import sharded_by_xla
from .._slices import Exchange, in_slices
from .._types import Length, Valid, check_valid, checks_itself
from ._checks import check_state, many_tokens, one_token
from ._long_sums import LongSum
from ._operator import AbstractSequenceOperator


class Gates(NamedTuple):
    """The logarithms of the gates of one token, or of many. Neither is bounded above."""

    forget: Float[Array, "*time heads"]
    input: Float[Array, "*time heads"]


class StabilisedGates(NamedTuple):
    """Gates relative to $e^{m}$, with both exponents at most 0, and the maximum $m$."""

    log_decay: Float[Array, "*time heads"]
    log_write: Float[Array, "*time heads"]
    log_scale: Float[Array, "*time heads"]


@checks_itself
class Stabiliser(AbstractSequenceOperator[Gates, StabilisedGates, Float[Array, "2 heads"]]):
    r"""An operator that keeps exponential gates in range by a running maximum (xLSTM, arXiv 2405.04517, eqs. 15 to 17).

    $$m_t = \max(f_t + m_{t-1}, i_t), \qquad a_t = f_t + m_{t-1} - m_t \le 0, \qquad w_t = i_t - m_t \le 0$$

    A recurrence with log-decay $a$ and writes scaled by $e^{w}$ holds $e^{-m_t}$ times the state that the unscaled
    gates $f$ and $i$ would give. Outputs are $a$, $w$ and $m$. The state is $m$, initially 0, as the sum of two float32
    numbers. Slow forget gates therefore add up over thousands of tokens without losing digits.
    """

    heads: int = eqx.field(static=True)

    def __check_init__(self):
        check_sizes(heads=self.heads)

    def init_state(self) -> Float[Array, "2 heads"]:
        """The state before the first token: zeros, because an empty state is in range at any scale."""
        return jnp.zeros((2, self.heads), jnp.float32)

    @sharded_by_xla
    @checks_itself
    def chunk_scan(
        self, inputs: Gates, state: Float[Array, "2 heads"], extent: Extent = Extent()
    ) -> tuple[StabilisedGates, Float[Array, "2 heads"]]:
        """As `AbstractSequenceOperator.chunk_scan`."""
        forget, write = many_tokens(self, (self.heads,), _gates(self, inputs))
        state = check_state(self, state, (2, self.heads), axes="(2, heads)")
        gates = forget.astype(state.dtype), write.astype(state.dtype)
        return in_slices(_stabilised, None, gates, state, extent_of(extent, forget.shape[0]))

    @sharded_by_xla
    @checks_itself
    def step(
        self, inputs: Gates, state: Float[Array, "2 heads"], *, valid: Valid | None = None
    ) -> tuple[StabilisedGates, Float[Array, "2 heads"]]:
        """As `AbstractSequenceOperator.step`."""
        forget, write = one_token(self, (self.heads,), _gates(self, inputs))
        state = check_state(self, state, (2, self.heads), axes="(2, heads)")
        forget, write = forget.astype(state.dtype), write.astype(state.dtype)
        gates, maximum = _relative(LongSum(*state).plus(LongSum.of(forget)), write)
        maximum = jnp.stack(maximum)
        return gates, maximum if valid is None else jnp.where(check_valid(valid), maximum, state)


def _stabilised(
    _: None, inputs: tuple[Array, Array], state: Array, extent: CheckedExtent, exchange: Exchange
) -> tuple[StabilisedGates, Array]:
    """`chunk_scan` of a stabiliser, over a slice of the tokens."""
    (forget, write), time = inputs, inputs[0].shape[0]
    kept, new = forget, write
    if (valid := extent.valid(time)) is not None:
        forget = jnp.where(valid[:, None], forget, jnp.zeros_like(forget))
        kept, new = forget, jnp.where(valid[:, None], write, jnp.full_like(write, -jnp.inf))
    if (starts := extent.starts) is not None:  # what came before counts as 0, whatever it was
        new = jnp.where(starts[:, None], jnp.maximum(forget, new), new)
        kept = jnp.where(starts[:, None], jnp.full_like(forget, -jnp.inf), forget)
    over = jax.lax.associative_scan(lambda a, b: (a[0] + b[0], jnp.maximum(a[1] + b[0], b[1])), (kept, new))

    def after(state: Array, over: tuple[Array, Array]) -> LongSum:
        forgotten, maximum = over
        return _maximum(LongSum(*state).plus(LongSum.of(forgotten)), LongSum.of(maximum))

    last = lambda: jax.tree.map(lambda x: x[-1], over)
    state, finish = exchange(state, last, lambda state, over: jnp.stack(after(state, over)))
    maximum = after(state[:, None], over)
    before = (jnp.concatenate([at_first[None], then])[:-1] for at_first, then in zip(state, maximum, strict=True))
    if starts is not None:
        before = (jnp.where(starts[:, None], jnp.zeros_like(part), part) for part in before)
    gates, _ = _relative(LongSum(*before).plus(LongSum.of(forget)), write)
    return gates, finish(_after(extent.stop(time), state, maximum))


def _relative(kept: LongSum, write: Array) -> tuple[StabilisedGates, LongSum]:
    """The gates relative to the maximum, and the maximum.

    One of the two exponents is exactly 0, because both are computed from their difference, not from the maximum.
    """
    excess = (write - kept.total) - kept.rest
    maximum = _maximum(kept, LongSum.of(write))
    gates = StabilisedGates(
        log_decay=jnp.minimum(-excess, jnp.zeros_like(excess)),
        log_write=jnp.minimum(excess, jnp.zeros_like(excess)),
        log_scale=maximum.total,
    )
    return gates, maximum


def _maximum(a: LongSum, b: LongSum) -> LongSum:
    b_is_larger = (b.total > a.total) | ((b.total == a.total) & (b.rest > a.rest))
    return LongSum(jnp.maximum(a.total, b.total), jnp.where(b_is_larger, b.rest, a.rest))


def _gates(operator: Stabiliser, inputs: Any) -> dict[str, Any]:
    """The two gates, by their names in messages."""
    if not isinstance(inputs, Gates):
        raise ValueError(
            f"{type(operator).__name__}: `inputs` must be `ssmkit.Gates(forget, input)`, got {type(inputs).__name__}."
        )
    return {f"inputs.{name}": gate for name, gate in inputs._asdict().items()}


@checks_itself
class RunningPhase(AbstractSequenceOperator[Float[Array, "..."], Float[Array, "..."], Float[Array, "2 ..."]]):
    r"""The angle of a data-dependent rotation, $p_t = p_{t-1} + \delta_t \bmod 1$ in turns (Mamba-3).

    In turns, unlike in radians, whole turns are removed exactly, so a phase never loses digits. Outputs are in
    $[-1/2, 1/2]$. The state is $p$, initially 0, as the sum of two float32 numbers. After any number of steps, a phase
    is therefore as precise as one float32 number, 3e-8 turns. Many tokens are summed by halves, so that their roundings
    do not accumulate in one direction: 100,000 tokens at once are within 1e-5 turns.

    **Arguments:**

    - `shape`: the shape of one token's phases.
    """

    shape: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        check_shape(shape=self.shape)

    def init_state(self) -> Float[Array, "2 ..."]:
        """The state before the first token: zeros."""
        return jnp.zeros((2, *self.shape), jnp.float32)

    @sharded_by_xla
    @checks_itself
    def chunk_scan(
        self, inputs: Float[Array, "time ..."], state: Float[Array, "2 ..."], extent: Extent = Extent()
    ) -> tuple[Float[Array, "time ..."], Float[Array, "2 ..."]]:
        """As `AbstractSequenceOperator.chunk_scan`."""
        (inputs,) = many_tokens(self, self.shape, {"inputs": inputs})
        state = check_state(self, state, (2, *self.shape))
        return in_slices(_phases, None, inputs.astype(state.dtype), state, extent_of(extent, inputs.shape[0]))

    @sharded_by_xla
    @checks_itself
    def step(
        self, inputs: Float[Array, "..."], state: Float[Array, "2 ..."], *, valid: Valid | None = None
    ) -> tuple[Float[Array, "..."], Float[Array, "2 ..."]]:
        """As `AbstractSequenceOperator.step`."""
        (inputs,) = one_token(self, self.shape, {"inputs": inputs})
        state = check_state(self, state, (2, *self.shape))
        phase = _turned(LongSum(*state), LongSum.of(_wrapped(inputs.astype(state.dtype))))
        both = jnp.stack(phase)
        return phase.total, both if valid is None else jnp.where(check_valid(valid), both, state)


def _phases(_: None, turns: Array, state: Array, extent: CheckedExtent, exchange: Exchange) -> tuple[Array, Array]:
    """`chunk_scan` of a running phase, over a slice of the tokens."""
    time = turns.shape[0]
    column = lambda flags: jnp.reshape(flags, (-1,) + (1,) * (turns.ndim - 1))
    if (valid := extent.valid(time)) is not None:
        turns = jnp.where(column(valid), turns, jnp.zeros_like(turns))
    if extent.starts is None:
        number = None
        phases = jax.lax.associative_scan(lambda a, b: _wrapped(a + b), _wrapped(turns))
    else:
        number = column(extent.sequences(time))
        _, phases = jax.lax.associative_scan(
            lambda a, b: (b[0], _wrapped(jnp.where(a[0] == b[0], a[1], jnp.zeros_like(a[1])) + b[1])),
            (number, _wrapped(turns)),
        )

    def after(state: Array, over: tuple[Array | None, Array]) -> LongSum:
        number, phases = over
        if number is not None:
            state = jnp.where(number == 0, state, jnp.zeros_like(state))
        return _turned(LongSum(*state), LongSum.of(phases))

    last = lambda: jax.tree.map(lambda x: x[-1], (number, phases))
    state, finish = exchange(state, last, lambda state, over: jnp.stack(after(state, over)))
    phases = after(state[:, None], (number, phases))
    return phases.total, finish(_after(extent.stop(time), state, phases))


def _turned(phase: LongSum, turns: LongSum) -> LongSum:
    total, rest = phase.plus(turns)
    return LongSum(_wrapped(total), rest)


def _wrapped(turns: Array) -> Array:
    """Remove whole turns."""
    return turns - jax.lax.stop_gradient(jnp.round(turns))


def _after(stop: Length, state: Array, sums: LongSum) -> Array:
    """The state after a number of tokens, from the sums after every token."""
    if sums.total.shape[0] == 0:
        return state
    last = jnp.maximum(stop, 1) - 1
    return jnp.where(stop > 0, jnp.stack([sums.total[last], sums.rest[last]]), state)
