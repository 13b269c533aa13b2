r"""Decays that stay accurate when they are multiplied a hundred thousand times.

A decay that is rounded to float32 has an error of 3e-8, which is the same at every token: after n tokens the error of a
state is n times that. Here a decay is therefore a sum of two numbers,

$$e^{a} = \mathrm{near} + \mathrm{rest}, \qquad S' = \mathrm{near} \cdot S + (\mathrm{rest} \cdot S + b),$$

where a weak decay has an exact `near` and a small `rest`. For a real weak decay, `near` is 1 and `rest` is $e^{a} - 1$,
which is as precise as $a$ itself. A strong decay has `near` 0 and `rest` $e^{a}$. The remainder of a large state is
then not a difference of large numbers, minus infinity forgets exactly, and no error lasts for long.

A complex decay also turns. The nearest of 1024 directions is taken from a table that holds each direction as a sum of
two numbers. The remaining angle is at most 0.003 and is added to the logarithm. A direction is a whole number of steps,
so sums of directions are exact (`unwound` in `_rotation.py`).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact


_WEAK = -0.25
_DIRECTIONS = 1024


class Decay(NamedTuple):
    """A decay as the sum of `near` and `rest`. A real decay has no array `near`: it is 1 if `rest` has a negative sign.

    This holds for every weak decay, and for a decay of 1 too, because minus zero has a sign.
    """

    near: Inexact[Array, "*axes"] | None
    rest: Inexact[Array, "*axes"]

    def apart(self) -> "Decay":
        """The decay with `near` as numbers: XLA's CPU backend multiplies states of a batch faster than it selects."""
        near = jnp.signbit(self.rest).astype(self.rest.dtype) if self.near is None else self.near
        return Decay(near, self.rest)

    def __call__(self, state: Inexact[Array, "*axes"], increment: Inexact[Array, "*axes"]) -> Inexact[Array, "*axes"]:
        """The decayed state plus the increment."""
        if self.near is None:
            kept = jnp.where(jnp.signbit(self.rest), state, jnp.zeros_like(state))
        else:
            kept = self.near * state
        return kept + (self.rest * state + increment)


def decay(log_decay: Inexact[Array, "*axes"], steps: Float[Array, "*axes"] | None = None) -> Decay:
    r"""The decay $e^{a}$.

    **Arguments:**

    - `log_decay`: $a$.
    - `steps`: the number of direction steps to add to a complex $a$, after `directions` has removed its own steps.
    """
    if not jnp.iscomplexobj(log_decay):
        return Decay(None, _rest(log_decay))
    if steps is None:
        steps, log_decay = directions(log_decay)
    direction, lost = rotation(steps, log_decay.dtype)
    near = jnp.where(_weak(log_decay), direction, jnp.zeros_like(direction))
    return Decay(near, direction * _rest(log_decay) + lost * jax.lax.stop_gradient(jnp.exp(log_decay)))


def _weak(a: Inexact[Array, "*axes"]) -> Bool[Array, "*axes"]:
    return jnp.real(a) > _WEAK


@jax.custom_jvp
def _rest(a: Inexact[Array, "*axes"]) -> Inexact[Array, "*axes"]:
    """The `rest` of a decay. Its derivative is the whole decay, and not that of a polynomial."""
    rest = _exp_minus_one(a)
    return jnp.where(_weak(a), rest if jnp.iscomplexobj(a) else -jnp.abs(rest), jnp.exp(a))


@_rest.defjvp
def _(primals, tangents):
    (a,), (d_a,) = primals, tangents
    rest = _rest(a)
    return rest, (_weak(a).astype(a.dtype) + rest) * d_a


def _exp_minus_one(a: Inexact[Array, "*axes"]) -> Inexact[Array, "*axes"]:
    """The exponential minus one, by Taylor's series: on a CPU, XLA's `expm1` costs as much as two exponentials."""
    terms = 7 if jnp.finfo(a.dtype).bits == 32 else 13
    factor = jnp.ones_like(a)
    for n in range(terms, 1, -1):
        factor = 1.0 + (a * (1.0 / n)) * factor
    return a * factor


# Directions.


def directions(log_decay: Inexact[Array, "*axes"]) -> tuple[Float[Array, "*axes"], Inexact[Array, "*axes"]]:
    """Split complex log-decays into angles, to the nearest step, and remaining log-decays.

    **Returns:** the steps, as whole numbers in floats, and the remaining log-decays, which carry all gradients.
    """
    real, angle = jnp.real(log_decay), jnp.imag(log_decay)
    steps = jax.lax.stop_gradient(jnp.round(angle * (_DIRECTIONS / (2 * math.pi))))
    first, second, third = _STEP
    return steps, jax.lax.complex(real, ((angle - steps * first) - steps * second) - steps * third)


def rotation(steps: Float[Array, "*axes"], dtype: jnp.dtype) -> tuple[Inexact[Array, "*axes"], Inexact[Array, "*axes"]]:
    """The complex unit of a direction, rounded, and its rounding error."""
    index = within_turn(steps).astype(jnp.int32)
    angles = np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS)
    exact = np.cos(angles) + 1j * np.sin(angles)
    rounded = exact.astype(dtype)
    look_up = lambda table: jnp.take(jnp.asarray(table, dtype), index, mode="clip")
    return look_up(rounded), look_up(exact - rounded)


def within_turn(steps: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """The steps without whole turns: from 0 to less than the number of directions."""
    return jnp.remainder(steps, jnp.full_like(steps, _DIRECTIONS))


def _in_parts(x: float) -> tuple[float, float, float]:
    """Split a number into three terms, the first two of 10 bits: products with integers up to 16384 are then exact."""
    parts = []
    for _ in range(2):
        unit = 2.0 ** (math.floor(math.log2(x)) - 9)
        parts.append(math.floor(x / unit) * unit)
        x -= parts[-1]
    return parts[0], parts[1], x


_STEP = _in_parts(2 * math.pi / _DIRECTIONS)
