"""The dtypes of weights in training and in storage.

An update is often smaller than half the distance between two bfloat16 numbers, and would be rounded away. Therefore
weights are trained in float32, and rounded when they leave the loop. A bfloat16 checkpoint is thus trained like its
float32 copy.
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
    """Check that a model can be trained.

    **Raises:** `ValueError` for a model with 8-bit matrices, which have no gradients.
    """
    is_int8 = lambda node: isinstance(node, Int8Matrix)
    if any(map(is_int8, jax.tree.leaves(model, is_leaf=is_int8))):
        raise ValueError(
            "`model` is quantised to int8 and cannot be trained. Train the model that it was made of (load it without "
            "`quantize`), and quantise the result."
        )


def widened(params: Model) -> Model:
    """A copy of a model in which every array is float32 or wider."""

    def widen(array: Array) -> Array:
        is_complex = jnp.issubdtype(array.dtype, jnp.complexfloating)
        return jnp.array(array, array.dtype if is_complex else at_least_float32(array.dtype))

    return jax.tree.map(widen, params)


def as_stored(params: Model, like: PyTree) -> Model:
    """Round the arrays to the dtypes of those in `like`. Arrays that have their dtype already are not copied."""
    return jax.tree.map(lambda array, stored: array.astype(stored.dtype), params, like)
