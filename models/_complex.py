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

    - `B`: maps `width` to the recurrence's inputs, `2 * heads`: the real and the imaginary part of each in turn.
    - `recurrence`: maps complex `(*time, heads)` to complex `(*time, heads, 1)`.
    - `C`: maps `2 * heads` to `width`; its columns are the real and the imaginary part of each column of $C$ in turn.
    - `u`: features of shape `(*time, width)`.
    - `state`: the state of the recurrence.
    - `advance`: as in `ssmkit.AbstractRecurrentMixer.mix`.
    """
    pairs = jnp.reshape(B(u), (*u.shape[:-1], -1, 2))
    x, state = advance(recurrence, jax.lax.complex(pairs[..., 0], pairs[..., 1]), state)
    x = x[..., 0]
    return C(in_turn(jnp.real(x), -jnp.imag(x), axis=-1)), state


def in_turn(real: Float[Array, "*axes"], imaginary: Float[Array, "*axes"], axis: int) -> Float[Array, "*pairs"]:
    """Real and imaginary parts in turn along an axis, so that the two parts of a state are never far apart."""
    axis = axis % real.ndim
    pairs = jnp.stack([real, imaginary], axis=axis + 1)
    return jnp.reshape(pairs, (*real.shape[:axis], -1, *real.shape[axis + 1 :]))
