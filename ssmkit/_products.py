"""Products of arrays. No other file of the package or of its models multiplies matrices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int

from ._types import checks_itself


FULL = jax.lax.Precision.HIGHEST


@checks_itself
def product(
    equation: str, *operands: Inexact[Array, "..."] | Int[Array, "..."], precision: jax.lax.PrecisionLike = FULL
) -> Array:
    """The sums of products that an einsum equation names, computed as precisely as the dtype of the operands says.

    By default, JAX rounds the float32 operands of a matrix product to bfloat16 on a TPU, and to 10 bits (TF32) on an
    NVIDIA GPU. Here the dtype of the operands states the precision, and platforms agree:

    - float32, float64 or complex: every operand counts in full. Gradients are as precise.
    - narrower: operands are multiplied as they are, quickly, and summed in float32, or in int32 if they are integers.

    **Arguments:**

    - `equation`: as for `jnp.einsum`.
    - `operands`: arrays of one dtype.
    - `precision`: that of float32 or wider operands, as for `jnp.einsum`; by default they count in full.

    **Returns:** an array of the dtype of the sums.

    **Raises:** `ValueError` for operands of different dtypes, and as `jnp.einsum`.
    """
    dtypes = [operand.dtype for operand in operands]
    if len(set(dtypes)) != 1:
        raise ValueError(
            f"`operands` must have one dtype, got {', '.join(map(str, dtypes)) or 'no operand'}. Cast them: the dtype "
            "says how precise the product is."
        )
    dtype = dtypes[0]
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.einsum(equation, *operands, preferred_element_type=jnp.int32)
    if jnp.finfo(dtype).bits < 32:
        return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)
    return jnp.einsum(equation, *operands, precision=precision)
