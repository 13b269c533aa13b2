"""Checks of the sizes, shapes, numbers, dtypes, switches and keys that constructors of layers and models take."""

import functools
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from ._types import PRNGKeyArray, checks_itself, shown, whole


Function = TypeVar("Function", bound=Callable[..., Any])


def checks_arguments(init: Function) -> Function:
    """Check the arguments of a mixer's `__init__` against its annotations, before it runs.

    An `int` is a size of at least 1 (at least 0, if 0 is the default). A `float` is any finite number, and becomes a
    Python float. A `bool` is a switch. `None` passes if the annotation allows it. A `DTypeLike` is a floating-point
    dtype, and a `PRNGKeyArray` is one key. The constructor itself checks all other conditions, such as divisibility.

        class Decaying(ssmkit.AbstractRecurrentMixer[Array]):
            @ssmkit.checks_arguments
            def __init__(self, width: int, *, state_size: int = 16, key: PRNGKeyArray): ...

    **Arguments:**

    - `init`: the method, without string annotations.

    **Returns:** the method. It raises `ValueError` naming the class and the first argument of a wrong kind.
    """
    signature, owner = inspect.signature(checks_itself(init)), init.__qualname__.split(".")[-2]

    @functools.wraps(init)
    def checked(*args: Any, **keywords: Any) -> None:
        try:
            given = signature.bind(*args, **keywords)
        except TypeError:
            return init(*args, **keywords)  # Python's own message
        for name, value in given.arguments.items():
            try:
                given.arguments[name] = _of_its_kind(signature.parameters[name], value)
            except ValueError as error:
                raise ValueError(f"{owner}: {error}") from None
        return init(*given.args, **given.kwargs)

    return checked  # pyright: ignore[reportReturnType]


def _of_its_kind(parameter: inspect.Parameter, value: Any) -> Any:
    name, kind = parameter.name, parameter.annotation
    for each in (int, float, bool):
        if kind == each | None:
            if value is None:
                return None
            kind = each
    if kind is int:
        check_sizes(0 if parameter.default == 0 else 1, **{name: value})
        return int(value)
    if kind is float:
        check_numbers(**{name: value})
        return float(value)
    if kind is bool:
        check_switches(**{name: value})
    elif kind == DTypeLike:
        check_dtype(value)
    elif kind == PRNGKeyArray:
        check_one_key(value)
    return value


def check_integers(**values: Any) -> None:
    """Check integers by name.

    **Raises:** `ValueError` naming the first value that is not an integer.
    """
    for name, value in values.items():
        if whole(value) is None:
            raise ValueError(f"`{name}` must be an integer, got {shown(value)}.")


def check_sizes(least: int = 1, /, **sizes: Any) -> None:
    """Check sizes by name.

    **Raises:** `ValueError` naming the first size that is not an integer of at least `least`.
    """
    check_integers(**sizes)
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"`{name}` must be at least {least}, got {size}.")


def check_shape(**shapes: Any) -> None:
    """Check shapes by name.

    **Raises:** `ValueError` naming the first shape that is not a tuple of integers of at least 1.
    """
    for name, shape in shapes.items():
        if not isinstance(shape, tuple) or any((whole(size) or 0) < 1 for size in shape):
            raise ValueError(f"`{name}` must be a tuple of integers, each at least 1, got {shown(shape)}.")


def check_numbers(**values: Any) -> None:
    """Check numbers by name.

    **Raises:** `ValueError` naming the first value that is not a finite number.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, got {shown(value)}.")


def check_switches(**switches: Any) -> None:
    """Check switches by name.

    **Raises:** `ValueError` naming the first value that is neither true nor false.
    """
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise ValueError(f"`{name}` must be True or False, got {shown(switch)}.")


def check_dtype(dtype: Any) -> None:
    """Check the dtype of parameters.

    **Raises:** `ValueError` when `dtype` is not a floating-point dtype.
    """
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"`dtype` must be a floating-point dtype, got {shown(dtype)}.")


def check_one_key(key: Any) -> None:
    """Check a random key.

    **Raises:** `ValueError` for anything but one key.
    """
    shape, dtype = getattr(key, "shape", None), getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if shape is None or not (shape == () if typed else dtype == jnp.uint32 and len(shape) == 1):
        raise ValueError(f"`key` must be one key, made by `jax.random.key(seed)`, got {shown(key)}.")


def positive(name: str, value: Any) -> float:
    """The float of a number above 0.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0.0 < float(value) < math.inf:
        raise ValueError(f"`{name}` must be a number above 0, known when the model is made, got {value!r}.")
    return float(value)
