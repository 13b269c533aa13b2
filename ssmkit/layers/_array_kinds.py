"""The kind of every array of a model. It follows from the layers and the annotations of their fields alone."""

import dataclasses
import enum
import typing
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from ._linear import BlockDiagonalLinear, Embedding, Linear, StackedLinear
from ._matrix import Int8Matrix


class ArrayKind(enum.Enum):
    """The role of an array in its model. Masks and partition specs are functions of it and of the number of axes."""

    EMBEDDING = "embedding"
    """Rows of tokens, `(rows, width)`."""
    PROJECTION_IN = "projection in"
    """A matrix whose outputs are channels inside a mixer, `(channel, width)`. It is the default of projections."""
    PROJECTION_OUT = "projection out"
    """A matrix that sums over a mixer's channels, `(width, channel)`."""
    SHARED = "shared"
    """A matrix whose outputs all heads or channels of a mixer need, `(channel, width)`, such as one of low rank."""
    HEAD = "head"
    """A matrix from features to logits, `(rows, width)`."""
    PER_HEAD = "per head"
    """An array whose first axis is heads or channels: decay rates, skips, taps, biases of channels."""
    VECTOR = "vector"
    """Any other array, such as norms of the residual stream."""

    @property
    def is_matrix(self) -> bool:
        """Whether arrays of this kind multiply features, so that weight decay and quantisation may act on them."""
        return self not in (ArrayKind.PER_HEAD, ArrayKind.VECTOR)


_CHANNELS = {"heads", "channel"}  # names of axes, as `ssmkit/_types.py` defines them


def array_kinds(model: PyTree) -> PyTree[ArrayKind]:
    """The kind of every leaf of a model.

    Layers determine it. An `Embedding` holds an embedding. A `Linear` or `BlockDiagonalLinear` is a projection into
    channels, unless the annotation of its field says otherwise. For an array that is itself a field, the annotation
    decides: the array is of kind `PER_HEAD` if its first axis is named `heads` or `channel`.

        class Mixer(ssmkit.AbstractRecurrentMixer[Array]):
            in_proj: ssmkit.Linear
            skip: Float[Array, " heads"]
            out_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]

    **Arguments:**

    - `model`: a model, a part of one, or a tree of the same structure, such as its gradients.

    **Returns:** the tree with kinds as leaves. Both arrays of an `Int8Matrix` have the kind of the matrix.
    """
    return jax.tree.structure(model).unflatten(_kinds(model, ArrayKind.VECTOR))


def matrix_mask(model: PyTree) -> PyTree[bool]:
    """True for the weights of projections, also of stacked ones, and of `Embedding`; false for everything else.

    The mask separates the matrices of any model from decay rates, step sizes, skips, norms, biases and convolutions,
    without their names. Weight decay (`mask=` of optax) and quantisation act on the matrices only.
    """
    return jax.tree.map(lambda kind: kind.is_matrix, array_kinds(model))


def _kinds(node: Any, kind: ArrayKind) -> Iterator[ArrayKind]:
    """The kinds of a node's leaves. Leaves whose kind the node does not determine are of kind `kind`."""
    for path, child in jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda inner: inner is not node)[0]:
        if not path:
            yield kind
        elif isinstance(node, eqx.Module):
            yield from _kinds(child, _of_field(node, path[0].name, kind))
        else:
            yield from _kinds(child, kind)


def _of_field(module: eqx.Module, name: str, kind: ArrayKind) -> ArrayKind:
    if isinstance(module, Embedding):
        return ArrayKind.EMBEDDING if name == "weight" else ArrayKind.VECTOR
    if isinstance(module, Linear | BlockDiagonalLinear | StackedLinear):
        projection = kind if kind.is_matrix else ArrayKind.PROJECTION_IN
        if name == "weight":
            return projection
        return ArrayKind.PER_HEAD if projection is ArrayKind.PROJECTION_IN else ArrayKind.VECTOR
    if isinstance(module, Int8Matrix):
        return kind
    found = _annotated({field.name: field.type for field in dataclasses.fields(module)}.get(name))
    return ArrayKind.VECTOR if kind is ArrayKind.SHARED and found is ArrayKind.PER_HEAD else found


def _annotated(annotation: Any) -> ArrayKind:
    """The kind that a field's annotation gives to its arrays; all alternatives of a union give the same kind."""
    for part in (annotation, *typing.get_args(annotation)):
        for said in getattr(part, "__metadata__", ()):
            if isinstance(said, ArrayKind):
                return said
        if _CHANNELS & {*getattr(part, "dim_str", "").split()[:1]}:
            return ArrayKind.PER_HEAD
    return ArrayKind.VECTOR
