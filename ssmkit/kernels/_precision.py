"""The precision a kernel works in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._coefficients import Coefficients


def working_dtype(coefficients: Coefficients, state: Inexact[Array, "heads key value"]) -> jnp.dtype:
    """The widest dtype of the operands, and at least float32.

    Promotion is explicit here, so it does not depend on the user's `jax_numpy_dtype_promotion`.

    **Raises:** `ValueError` when the coefficients are complex and the state is not, because it must hold the result.
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
    """Cast every field to this dtype."""
    return jax.tree.map(lambda array: array.astype(dtype), coefficients)
