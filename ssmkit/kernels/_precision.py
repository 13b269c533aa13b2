"""The precision a kernel works in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .. import _products
from ._coefficients import Coefficients
from ._platform import platform


# Products of float32 numbers whose errors are within the bounds of a recurrence, and that a platform computes quicker
# than exact ones. A TPU's `HIGH` splits every operand into two bfloat16 numbers, 16 bits, and multiplies three times in
# place of six. (A GPU's `HIGH` is TF32, 11 bits.)
_FLOAT32: dict[str, jax.lax.PrecisionLike] = {"tpu": jax.lax.Precision.HIGH}


def product(equation: str, *operands: Inexact[Array, "..."]) -> Array:
    """The products inside a chunk, as precise as a recurrence needs.

    The error of float32 operands is at most 1e-5 of the product of their absolute values, on every platform. Float64
    and complex operands count in full.

    **Arguments:** as `ssmkit.product`.
    """
    quick = _FLOAT32.get(platform(), _products.FULL) if operands[0].dtype == jnp.float32 else _products.FULL
    return _products.product(equation, *operands, precision=quick)


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
