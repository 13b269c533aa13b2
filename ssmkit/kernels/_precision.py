"""The precision a kernel works in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._coefficients import Coefficients


def working_dtype(coefficients: Coefficients, state: Inexact[Array, "heads key value"]) -> jnp.dtype:
    """The widest of the operands' dtypes, float32 at least.

    Promotion is asked for here, so it happens whatever the user's `jax_numpy_dtype_promotion` is.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*jax.tree.leaves(coefficients), state)
