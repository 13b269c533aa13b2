"""Checks of an operator's inputs and states. They use shapes and dtypes only, so they cost nothing under `jax.jit`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from .._types import shown


ADD_TIME = "put an axis of tokens (time) in front, `x[None]`, or use `step`"
DROP_TIME = "a step takes one, `x[0]`; many are for `chunk_scan`"


def many_tokens(operator: Any, shape: tuple[int, ...], inputs: Mapping[str, Any]) -> list[Array]:
    """Check the arrays of `chunk_scan`: many tokens, each of `shape`. Return JAX arrays.

    **Raises:** `ValueError` naming the operator, the array, the axis, the actual and the expected size.
    """
    name = f"{type(operator).__name__}.chunk_scan"
    arrays = [_fitted(name, array, given, shape, many=True) for array, given in inputs.items()]
    (first, *others), times = inputs, [array.shape[0] for array in arrays]
    for other, time in zip(others, times[1:], strict=True):
        if time != times[0]:
            raise ValueError(
                f"{name}: axis 0 (time) of `{other}` must be {times[0]}, as in `{first}`, got {time}: they are of the "
                "same tokens."
            )
    return arrays


def one_token(operator: Any, shape: tuple[int, ...], inputs: Mapping[str, Any]) -> list[Array]:
    """Check the arrays of `step`: one token of `shape`. Return JAX arrays.

    **Raises:** as `many_tokens`.
    """
    name = f"{type(operator).__name__}.step"
    return [_fitted(name, array, given, shape, many=False) for array, given in inputs.items()]


def _fitted(name: str, array: str, given: Any, token: tuple[int, ...], *, many: bool) -> Array:
    axes = ", ".join(map(str, ("time", *token) if many else token))
    expected = f"({axes},)" if len(token) + many == 1 else f"({axes})"
    if not isinstance(given, jax.Array | np.ndarray) or not jnp.issubdtype(given.dtype, jnp.floating):
        got = getattr(given, "dtype", type(given).__name__)
        raise ValueError(f"{name}: `{array}` must be a floating-point array of shape {expected}, got {got}.")
    got, sizes = given.shape, given.shape[many:]
    wrong = f"{name}: `{array}` must have shape {expected}, got {got}"
    if many and len(got) == len(token):
        raise ValueError(f"{wrong}, that of one token: {ADD_TIME}.")
    if not many and len(got) == len(token) + 1:
        raise ValueError(f"{wrong}, that of many tokens: {DROP_TIME}.")
    if len(sizes) != len(token):
        raise ValueError(f"{wrong}: an operator takes one sequence; batch with `jax.vmap`.")
    for axis, (size, fits) in enumerate(zip(sizes, token, strict=True), start=int(many)):
        if size != fits:
            raise ValueError(
                f"{name}: axis {axis} of `{array}` must be {fits}, got {size} in shape {got}: give what "
                f"it was made for, {expected}, or make another one."
            )
    return jnp.asarray(given)


def check_state(
    operator: Any, state: Any, shape: tuple[int, ...], *, axes: str = "", kind: Any = jnp.floating
) -> Inexact[Array, "..."]:
    """Check a state, and return it as a JAX array.

    **Arguments:**

    - `operator`: the operator of the state.
    - `state`: the argument of the user.
    - `shape`: the expected shape.
    - `axes`: the names of its axes, for the message.
    - `kind`: the kind of its numbers; `jnp.inexact` if they may be complex.

    **Raises:** `ValueError` naming the operator, the actual and the expected value, and the remedy.
    """
    name = type(operator).__name__
    numbers = "floating-point or complex" if kind is jnp.inexact else "floating-point"
    array = jnp.asarray(state) if isinstance(state, jax.Array | np.ndarray) else None
    if array is None or not jnp.issubdtype(array.dtype, kind):
        got = getattr(state, "dtype", type(state).__name__)
        raise ValueError(f"{name}: `state` must be a {numbers} array, got {got}. Start from `init_state()`.")
    if not is_wide(array.dtype):
        raise ValueError(
            f"{name}: `state` must be at least float32, got {array.dtype}: a state adds up many small numbers. "
            "Start from `init_state()`."
        )
    if tuple(array.shape) != tuple(shape):
        named = f"{axes} = {shape}" if axes else f"{shape}"
        raise ValueError(f"{name}: `state` must have shape {named}, got {array.shape}. Start from `init_state()`.")
    return array


def is_wide(dtype: Any) -> bool:
    """Whether a dtype is floating-point or complex, with at least the precision of float32."""
    try:
        return bool(jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32)
    except (TypeError, ValueError):
        return False


def dtype_name(dtype: Any) -> str:
    """The name of a dtype, or of another object that was given as a dtype."""
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return shown(dtype)
