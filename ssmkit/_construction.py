"""What constructors of layers and models ask of sizes, shapes, numbers, dtypes, switches and keys."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from ._types import shown, whole


def check_integers(**values: Any) -> None:
    """**Raises:** `ValueError` naming the first that is no integer."""
    for name, value in values.items():
        if whole(value) is None:
            raise ValueError(f"`{name}` must be an integer, got {shown(value)}.")


def check_sizes(**sizes: Any) -> None:
    """**Raises:** `ValueError` naming the first that is no integer of at least 1."""
    check_integers(**sizes)
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")


def check_shape(**shapes: Any) -> None:
    """**Raises:** `ValueError` naming the first that is no tuple of integers of at least 1."""
    for name, shape in shapes.items():
        if not isinstance(shape, tuple) or any((whole(size) or 0) < 1 for size in shape):
            raise ValueError(f"`{name}` must be a tuple of integers, each at least 1, got {shown(shape)}.")


def check_switches(**switches: Any) -> None:
    """**Raises:** `ValueError` naming the first that is neither true nor false."""
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise ValueError(f"`{name}` must be True or False, got {shown(switch)}.")


def check_dtype(dtype: Any) -> None:
    """**Raises:** `ValueError` when parameters cannot be of this dtype."""
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"`dtype` must be a floating-point dtype, got {shown(dtype)}.")


def check_one_key(key: Any) -> None:
    """**Raises:** `ValueError` for anything but one key."""
    shape, dtype = getattr(key, "shape", None), getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if shape is None or not (shape == () if typed else dtype == jnp.uint32 and len(shape) == 1):
        raise ValueError(f"`key` must be one key, made by `jax.random.key(seed)`, got {shown(key)}.")


def positive(name: str, value: Any) -> float:
    """A number above 0 as a float.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0.0 < float(value) < math.inf:
        raise ValueError(f"`{name}` must be a number above 0, known when the model is made, got {value!r}.")
    return float(value)
