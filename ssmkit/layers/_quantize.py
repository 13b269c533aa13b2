"""Quantisation of matrices to fewer bits. The parameters of recurrences stay float32."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._types import checks_itself, shown
from ._array_kinds import matrix_mask
from ._matrix import Int8Matrix


Model = TypeVar("Model")

_ROWS_PER_BLOCK = 1024


@checks_itself
def quantize(model: Model, kind: str) -> Model:
    """Store the matrices of a model's projections and embeddings in fewer bits; nothing else changes.

    Convolutions, norms, biases, decay rates and states stay unchanged. Activations stay float32; in a product with an
    8-bit matrix they keep 15 bits of the largest of them on a CPU, and for up to 16 rows on a TPU. Otherwise they are
    rounded to bfloat16.

    **Arguments:**

    - `model`: any module with `ssmkit.Linear`, `ssmkit.BlockDiagonalLinear` and `ssmkit.Embedding` layers, or experts.
    - `kind`: `"int8"` takes a quarter of the memory of float32, with one scale per row (an output channel, or a token).
        `"bfloat16"` takes half of it.

    **Returns:** the model; matrices are new arrays, all other arrays are shared.

    **Raises:** `ValueError` for another kind, or for NaN or infinity in a matrix; `TypeError` for a model that is
    quantised already, or for an argument that is not a model.
    """
    if not (isinstance(kind, str) and kind in NARROW):
        raise ValueError(f"`kind` must be one of {', '.join(NARROW)}, got {shown(kind)}.")
    if not any(isinstance(node, eqx.Module) for node in jax.tree.leaves(model, is_leaf=_is_module)):
        raise TypeError(f"`model` must be an `equinox.Module`, such as a model of ssmkit, got {shown(model)}.")

    if any(map(_is_int8, jax.tree.leaves(model, is_leaf=_is_int8))):
        raise TypeError("`model` is quantised already. Quantise the model that it was made of.")
    narrow = NARROW[kind]
    return jax.tree.map(lambda is_matrix, leaf: narrow(leaf) if is_matrix else leaf, matrix_mask(model), model)


def _is_module(node: Any) -> bool:
    return isinstance(node, eqx.Module)


def _is_int8(node: Any) -> bool:
    return isinstance(node, Int8Matrix)


def _int8(matrix: ArrayLike) -> Int8Matrix:
    """Round every entry to one of 255 steps from minus to plus the largest magnitude in its row."""
    stacked = np.asarray(matrix)
    given = np.reshape(stacked, (math.prod(stacked.shape[:-1]), stacked.shape[-1]))  # the rows of all blocks
    values, scale = np.empty(given.shape, np.int8), np.empty(given.shape[:1], np.float32)
    for start in range(0, given.shape[0], _ROWS_PER_BLOCK):  # few rows at a time are widened
        block = slice(start, start + _ROWS_PER_BLOCK)
        rows = given[block].astype(np.float32)
        largest = np.max(np.abs(rows), axis=1, initial=0.0)
        if not np.isfinite(largest).all():
            raise ValueError("a matrix holds NaN or infinity, which 8 bits cannot express.")
        scale[block] = np.where(largest > 0, largest, 1) / 127
        values[block] = np.rint(rows / scale[block, None])
    return Int8Matrix(jnp.asarray(values.reshape(stacked.shape)), jnp.asarray(scale.reshape(stacked.shape[:-1])))


def _bfloat16(matrix: ArrayLike) -> Float[Array, "*blocks out in"]:
    return jnp.array(matrix, jnp.bfloat16)


NARROW: dict[str, Callable[[ArrayLike], Array | Int8Matrix]] = {"int8": _int8, "bfloat16": _bfloat16}
"""The functions that store a matrix in fewer bits, by their public names."""
