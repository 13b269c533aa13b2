"""One token: the O(1) decoding kernel, of every family."""

import einops
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._coefficients import Coefficients


def step(
    coefficients: Coefficients, state: Inexact[Array, "heads key value"]
) -> tuple[Inexact[Array, "heads value"], Inexact[Array, "heads key value"]]:
    r"""$S' = e^{a} \odot S + k v^\top$ and $y = S'^\top q$, for one token.

    One pass over the state: no chunk, no padding. Grouped `write` and `read` are never repeated to heads.

    **Arguments:**

    - `coefficients`: of one token, no `time` axis.
    - `state`: the state before the token; its dtype is kept.

    **Returns:** the output `(heads, value)` and the new state.
    """
    groups = coefficients.write.shape[0]
    dtype = jnp.result_type(coefficients.log_decay, coefficients.value, coefficients.write, state)
    write, read = (array.astype(dtype)[:, None, :, None] for array in (coefficients.write, coefficients.read))
    value = einops.rearrange(coefficients.value.astype(dtype), "(g m) v -> g m 1 v", g=groups)
    decay = einops.rearrange(jnp.exp(coefficients.log_decay), "(g m) k -> g m k 1", g=groups)
    new = decay * einops.rearrange(state, "(g m) k v -> g m k v", g=groups) + write * value
    output = jnp.sum(read * new, axis=-2)
    return jnp.reshape(output, coefficients.value.shape), jnp.reshape(new, state.shape).astype(state.dtype)
