"""One token: the O(1) decoding kernel, of every family."""

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._coefficients import Coefficients
from ._precision import working_dtype


def step(
    coefficients: Coefficients, state: Inexact[Array, "heads key value"]
) -> tuple[Inexact[Array, "heads value"], Inexact[Array, "heads key value"]]:
    r"""$S' = e^{a} \odot S + k v^\top$ and $y = S'^\top q$, for one token.

    One pass over the state: no chunk, no padding.

    **Arguments:**

    - `coefficients`: of one token, no `time` axis.
    - `state`: the state before the token; its dtype is kept.

    **Returns:** the output `(heads, value)` and the new state.
    """
    dtype = working_dtype(coefficients, state)
    coefficients = jax.tree.map(lambda array: array.astype(dtype), coefficients)
    write, read = (_per_head(array, state.shape[0]) for array in (coefficients.write, coefficients.read))
    decay = jnp.exp(coefficients.log_decay)[:, :, None]
    new = decay * state.astype(dtype) + write[:, :, None] * coefficients.value[:, None, :]
    return jnp.sum(read[:, :, None] * new, axis=1), new.astype(state.dtype)


def _per_head(array: Inexact[Array, "groups key"], heads: int) -> Inexact[Array, "heads key"]:
    """A view: XLA fuses it into the update, so that a group is not repeated in memory.

    The state keeps its three axes for the same reason: split into (group, member), XLA's CPU backend of jax 0.10 walks
    it 18 times slower.
    """
    return einops.repeat(array, "g k -> (g m) k", m=heads // array.shape[0])
