"""The precision a kernel works in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._coefficients import Coefficients


def working_dtype(coefficients: Coefficients, state: Inexact[Array, "heads key value"]) -> jnp.dtype:
    """The widest of the operands' dtypes, float32 at least.

    Promotion is asked for here, so it happens whatever the user's `jax_numpy_dtype_promotion` is.

    **Raises:** `ValueError` when the coefficients are complex and the state, which must hold the result, is not.
    """
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*[leaf.dtype for leaf in jax.tree.leaves((coefficients, state))])
    if jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.issubdtype(state.dtype, jnp.complexfloating):
        raise ValueError(
            f"`state` must be complex64, as the coefficients are complex, got {state.dtype}. A recurrence says so by "
            "its field `state_dtype`."
        )
    return dtype


def in_dtype(coefficients: Coefficients, dtype: jnp.dtype) -> Coefficients:
    """Every field in this dtype."""
    return jax.tree.map(lambda array: array.astype(dtype), coefficients)
