"""The axis legend: the only place where the names used in shape annotations are defined.

| name     | meaning                                                                |
|----------|------------------------------------------------------------------------|
| `time`   | tokens of one sequence, oldest first                                   |
| `batch`  | sequences; only the generation engine and training have this axis      |
| `heads`  | independent recurrences of one layer                                   |
| `groups` | heads that share `write` and `read`; `groups` divides `heads`          |
| `key`    | rows of a head's state (Mamba's state size N)                          |
| `value`  | columns of a head's state (Mamba's head dimension P)                   |
| `width`  | features of the residual stream (`hidden_size`)                        |
| `channel`| features inside a mixer                                                |
| `vocab`  | token ids that can be produced; padding rows of the embedding excluded |

A leading `*axes` stands for any number of leading axes, none included. Inside einsum equations:
`t` time, `i`/`j` positions inside one chunk (target/source), `h` head = (`g` group, `m` member of the group),
`k` key, `v` value.
"""

import operator
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, DTypeLike, Float, Inexact, Int, PRNGKeyArray as PRNGKeyArray

from ._config import check_environment, checks_itself as checks_itself
from ._shown import shown as shown


check_environment()  # every module that computes imports this one


Token: TypeAlias = Int[Array, ""]
TokenLike: TypeAlias = Int[ArrayLike, ""]
TokensLike: TypeAlias = Int[ArrayLike, " time"]
Tokens: TypeAlias = Int[Array, " time"]
Length: TypeAlias = Int[Array, ""] | int
Valid: TypeAlias = Bool[Array, ""] | bool
Logits: TypeAlias = Float[Array, " vocab"]
State: TypeAlias = Inexact[Array, "heads key value"]
StateLike: TypeAlias = Inexact[ArrayLike, "heads key value"]


@checks_itself
def check_length(length: Length, time: int) -> Int[Array, ""]:
    """Convert `length` to an int32 scalar in `[0, time]`. A traced value outside this range is clipped.

    **Raises:** `ValueError` when `length` is not an integer, or is known (not traced) and outside `[0, time]`.
    """
    array = _array("length", length, "one integer")
    if array.ndim != 0 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"`length` must be one integer, got {array.dtype} of shape {array.shape}.")
    if isinstance(array, Tracer):
        return jnp.clip(array.astype(jnp.int32), 0, time)
    if not 0 <= int(array) <= time:
        raise ValueError(f"`length` must lie in [0, {time}], the time axis of the inputs, got {int(array)}.")
    return array.astype(jnp.int32)


@checks_itself
def check_valid(valid: Valid) -> Bool[Array, ""]:
    """Convert `valid` to a boolean scalar.

    **Raises:** `ValueError` when it is not one boolean.
    """
    array = _array("valid", valid, "one boolean")
    if array.ndim != 0 or array.dtype != jnp.bool_:
        raise ValueError(f"`valid` must be one boolean, got {array.dtype} of shape {array.shape}.")
    return array


def _array(name: str, value: Any, expected: str) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`{name}` must be {expected}, got {shown(value)}.") from error


def check_features(x: Any, size: int) -> None:
    """Check the width of features.

    **Raises:** `ValueError` when the last axis of `x` does not have the size that the layer was built for.
    """
    if not isinstance(x, Array | np.ndarray):
        raise ValueError(f"`x` must be an array whose last axis holds {size} features, got {shown(x)}.")
    if x.shape[-1:] != (size,):
        raise ValueError(
            f"the last axis of `x` must hold the {size} features that this layer was made for, got "
            f"{x.shape[-1] if x.ndim else 'none'} in shape {x.shape}. Make the layer for as many."
        )


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of all values except a projection's operands: float32, or `dtype` if that is wider."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def whole(value: Any) -> int | None:
    """The Python integer of one integer of Python, NumPy or JAX; `None` for anything else, booleans included."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def real(value: Any) -> float | None:
    """The Python number of one real number of Python, NumPy or JAX; `None` for anything else, booleans included."""
    try:
        array = np.asarray(value)
        is_real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
        return float(array) if array.ndim == 0 and is_real else None
    except (TypeError, ValueError, OverflowError):
        return None
