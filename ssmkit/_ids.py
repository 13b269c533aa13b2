"""The one check of token ids. It serves models, `generate`, `score` and training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from ._types import shown


def as_array(value: Any) -> np.ndarray | None:
    """A value as a NumPy array; `None` for a value without a shape, such as rows of unequal length."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        return None


def read_ids(
    what: str, given: Any, *axes: str, least: int = 1, vocab_size: int | None = None, remedy: str = ""
) -> Integer[Array, "..."] | Integer[np.ndarray, "..."]:
    """Convert ids to an array of integers.

    **Arguments:**

    - `what`: the name of the argument in messages.
    - `given`: the argument, traced or not.
    - `axes`: the names of its axes; none for one id.
    - `least`: the least size of the last axis.
    - `vocab_size`: ids must be below it; `None` skips this check, because the ids of a model may be traced.
    - `remedy`: a sentence that the message adds for an argument of another form.

    **Returns:** a JAX array unchanged, and anything else as a NumPy array.

    **Raises:** `ValueError` with the actual and the expected value.
    """
    array = given if isinstance(given, jax.Array) else as_array(given)
    if array is not None and array.size == 0 and not isinstance(array, jax.Array):
        array = array.astype(np.int32)  # NumPy takes an empty list for floats
    if array is None or array.ndim != len(axes) or not jnp.issubdtype(array.dtype, jnp.integer):
        form = f"integer ids of shape ({', '.join(axes)}{',' * (len(axes) == 1)})" if axes else "one integer id"
        got = shown(given) if array is None or array.dtype.kind in "OUS" else f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"{what} must be {form}, got {got}.{' ' * bool(remedy)}{remedy}")
    if axes and array.shape[-1] < least:
        raise ValueError(f"{what} must have at least {least} id{'s' * (least > 1)}, got {array.shape[-1]}.")
    if vocab_size is not None and array.size and (array.min() < 0 or array.max() >= vocab_size):
        raise ValueError(
            f"{what} must have ids in [0, {vocab_size}), got ids from {array.min()} to {array.max()}. Is this the "
            "model's tokenizer?"
        )
    return array


def read_sequence(given: Any, *axes: str) -> Integer[Array, "..."]:
    """Convert the ids that a model consumes: many with the axis `time`, or one.

    **Raises:** `ValueError`, as `read_ids`.
    """
    remedy = "A model takes one sequence; batch with `jax.vmap` or `ssmkit.generate`."
    return jnp.asarray(read_ids("`tokens`" if axes else "`token`", given, *axes, remedy=remedy))
