"""The common part of S5 and LRU: a diagonal complex recurrence between real matrices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

import ssmkit


def between(
    B: ssmkit.Linear,
    recurrence: ssmkit.AbstractSequenceOperator,
    C: ssmkit.Linear,
    u: Float[Array, "*time width"],
    state: Complex[Array, "heads 1 1"],
    advance: ssmkit.Advance,
) -> tuple[Float[Array, "*time width"], Complex[Array, "heads 1 1"]]:
    r"""Compute $\operatorname{Re}(C x)$, where $x$ are the complex states of a recurrence with inputs $B u$.

    **Arguments:**

    - `B`: maps `width` to the real parts, followed by the imaginary parts, of the recurrence's inputs, `2 * heads`.
    - `recurrence`: maps complex `(*time, heads)` to complex `(*time, heads, 1)`.
    - `C`: maps `2 * heads` to `width`; its columns are the real parts, followed by the imaginary parts, of $C$.
    - `u`: features of shape `(*time, width)`.
    - `state`: the state of the recurrence.
    - `advance`: as in `ssmkit.AbstractRecurrentMixer.mix`.
    """
    x, state = advance(recurrence, jax.lax.complex(*jnp.split(B(u), 2, axis=-1)), state)
    x = x[..., 0]
    return C(jnp.concatenate([jnp.real(x), -jnp.imag(x)], axis=-1)), state
