"""Weights as they are trained, and as they are stored.

An update is often smaller than half the distance of two bfloat16 numbers, and would be rounded away. So weights are
trained in float32, and rounded where they leave the loop: a checkpoint in bfloat16 is trained as its float32 copy is.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._language_model import AbstractLanguageModel
from .._types import at_least_float32
from ..layers._matrix import Int8Matrix


Model = TypeVar("Model")


def check_trainable(model: AbstractLanguageModel) -> None:
    """**Raises:** `ValueError` for a model with matrices of 8 bits, which no gradient reaches."""
    is_int8 = lambda node: isinstance(node, Int8Matrix)
    if any(map(is_int8, jax.tree.leaves(model, is_leaf=is_int8))):
        raise ValueError(
            "`model` is quantised to int8 and cannot be trained. Train the model that it was made of (load it without "
            "`quantize`), and quantise the result."
        )


def widened(params: Model) -> Model:
    """A copy in which every array is float32 or wider."""

    def widen(array: Array) -> Array:
        is_complex = jnp.issubdtype(array.dtype, jnp.complexfloating)
        return jnp.array(array, array.dtype if is_complex else at_least_float32(array.dtype))

    return jax.tree.map(widen, params)


def as_stored(params: Model, like: PyTree) -> Model:
    """The arrays rounded to the dtypes of those of `like`; what has its dtype is no copy."""
    return jax.tree.map(lambda array, stored: array.astype(stored.dtype), params, like)
