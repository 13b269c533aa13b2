"""Checks of the coefficients and the state that users pass to a kernel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from ._coefficients import Coefficients


def check_operands(coefficients: Any, state: Any, *, many: bool) -> Inexact[Array, "heads key value"]:
    """Refuse coefficients or a state that a kernel cannot take.

    **Arguments:**

    - `coefficients`, `state`: the arguments as they were passed.
    - `many`: whether the coefficients have a `time` axis.

    **Returns:** the state as a JAX array.

    **Raises:** `ValueError` that names the argument.
    """
    check_coefficients(coefficients, many=many)
    array = jnp.asarray(state) if isinstance(state, jax.Array | np.ndarray) else None
    if array is None or not jnp.issubdtype(array.dtype, jnp.inexact) or array.dtype == jnp.float16:
        got = getattr(state, "dtype", type(state).__name__)
        raise ValueError(
            f"`state` must be a floating-point or complex array, got {got}. float16 is refused: it overflows at 65504."
        )
    heads, value = coefficients.value.shape[many], coefficients.value.shape[-1]
    expected = heads, coefficients.write.shape[-1], value
    if array.shape != expected:
        raise ValueError(
            f"`state` must have shape (heads, key, value) = {expected}, as the coefficients say, got {array.shape}."
        )
    return array


def check_coefficients(coefficients: Any, *, many: bool) -> None:
    """**Raises:** `ValueError` for anything but coefficients, of many tokens or of one."""
    if not isinstance(coefficients, Coefficients):
        raise ValueError(f"`coefficients` must be `ssmkit.Coefficients`, got {type(coefficients).__name__}.")
    shape = coefficients.log_decay.shape
    if len(shape) != 2 + many:
        wanted = "many tokens, with a leading axis (time)" if many else "one token"
        other = "One token is for `kernels.step`" if many else "Many tokens are for `kernels.chunk_scan`"
        raise ValueError(f"`coefficients` must be those of {wanted}, got `log_decay` of shape {shape}. {other}.")
