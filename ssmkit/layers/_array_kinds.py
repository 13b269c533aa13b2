"""What every array of a model is to it: read off its layers and the annotations of their fields, in no other place."""

import dataclasses
import enum
import typing
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from ._linear import BlockDiagonalLinear, Embedding, Linear
from ._matrix import Int8Matrix


class ArrayKind(enum.Enum):
    """What an array is to its model. Masks, and partition specs, are functions of it and of the number of axes."""

    EMBEDDING = "embedding"
    """Rows of tokens, `(rows, width)`."""
    PROJECTION_IN = "projection in"
    """A matrix whose outputs are channels inside a mixer, `(channel, width)`: what a projection is unless it is said
    otherwise."""
    PROJECTION_OUT = "projection out"
    """A matrix that sums over a mixer's channels, `(width, channel)`."""
    HEAD = "head"
    """A matrix from features to logits, `(rows, width)`."""
    PER_HEAD = "per head"
    """Numbers of each head or channel, which its first axis counts: decay rates, skips, taps, biases of channels."""
    VECTOR = "vector"
    """All else, such as norms of the residual stream."""

    @property
    def is_matrix(self) -> bool:
        """Whether it is multiplied with features, and so can lose weight or bits."""
        return self not in (ArrayKind.PER_HEAD, ArrayKind.VECTOR)


_CHANNELS = {"heads", "channel"}  # names of axes, as `ssmkit/_types.py` defines them


def array_kinds(model: PyTree) -> PyTree[ArrayKind]:
    """The kind of every leaf.

    Layers say it: `Embedding`, and `Linear` and `BlockDiagonalLinear`, which are projections into channels unless the
    field that holds them is annotated otherwise. An array that is a field by itself has a first axis of heads or
    channels if its annotation calls it so.

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
    """True for the weights of `Linear`, `BlockDiagonalLinear` and `Embedding`, false for everything else.

    It tells the matrices of any model from decay rates, step sizes, skips, norms, biases and convolutions without
    naming them: weight decay (`mask=` of optax) and quantisation act on the former only.
    """
    return jax.tree.map(lambda kind: kind.is_matrix, array_kinds(model))


def _kinds(node: Any, kind: ArrayKind) -> Iterator[ArrayKind]:
    """Those of the leaves of a node, which is of this kind where it does not know better itself."""
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
    if isinstance(module, Linear | BlockDiagonalLinear):
        projection = kind if kind.is_matrix else ArrayKind.PROJECTION_IN
        if name == "weight":
            return projection
        return ArrayKind.PER_HEAD if projection is ArrayKind.PROJECTION_IN else ArrayKind.VECTOR
    if isinstance(module, Int8Matrix):
        return kind
    return _annotated({field.name: field.type for field in dataclasses.fields(module)}.get(name))


def _annotated(annotation: Any) -> ArrayKind:
    """What the annotation of a field says of arrays in it; several alternatives say the same."""
    for part in (annotation, *typing.get_args(annotation)):
        for said in getattr(part, "__metadata__", ()):
            if isinstance(said, ArrayKind):
                return said
        if _CHANNELS & {*getattr(part, "dim_str", "").split()[:1]}:
            return ArrayKind.PER_HEAD
    return ArrayKind.VECTOR
