"""What S5 and LRU share: a diagonal complex recurrence between real matrices."""

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
    r"""$\operatorname{Re}(C x)$ where $x$ are the complex states of a recurrence driven by $B u$.

    **Arguments:**

    - `B`: from `width` to the real and then the imaginary parts of the recurrence's inputs, `2 * heads`.
    - `recurrence`: from complex `(*time, heads)` to complex `(*time, heads, 1)`.
    - `C`: from `2 * heads` to `width`; its columns are the real and then the imaginary parts of $C$.
    - `u`: shape `(*time, width)`.
    - `state`: of the recurrence.
    - `advance`: as in `ssmkit.AbstractRecurrentMixer.mix`.
    """
    x, state = advance(recurrence, jax.lax.complex(*jnp.split(B(u), 2, axis=-1)), state)
    x = x[..., 0]
    return C(jnp.concatenate([jnp.real(x), -jnp.imag(x)], axis=-1)), state
