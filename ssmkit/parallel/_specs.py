"""The rule table: how every array of a model, of its gradients and of its optimiser's state is spread over a mesh."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from .._types import checks_itself
from ..layers._array_kinds import ArrayKind, array_kinds
from ..layers._linear import StackedLinear
from ..mixers._scanned import ScannedBlocks
from ._mesh import check_mesh


# The axis of an array of each kind that is spread over `model`: heads, channels, or rows of tokens.
_OVER_MODEL = {
    ArrayKind.EMBEDDING: 0,
    ArrayKind.HEAD: 0,
    ArrayKind.PROJECTION_IN: 0,
    ArrayKind.PROJECTION_OUT: 1,
    ArrayKind.PER_HEAD: 0,
}


@checks_itself
def partition_specs(tree: PyTree, mesh: Mesh, *, fully_sharded: bool = False) -> PyTree[PartitionSpec]:
    """The partition spec of every leaf of a model, or of a tree made of models, such as an optimiser's state.

    The kind of an array decides (`ssmkit.array_kinds`). Over `model`, embeddings, heads and projections into channels
    are spread by rows, projections out of channels by columns, and arrays per head or channel by their first axis. An
    axis that the mesh does not divide stays whole, as do all other arrays.

    **Arguments:**

    - `tree`: the tree; leaves may be arrays or `jax.ShapeDtypeStruct`s.
    - `mesh`: a mesh with axes of `AXES`.
    - `fully_sharded`: whether matrices are spread over `data` too, along their longest axis that `data` divides and
        that is not spread over `model`.

    **Returns:** the tree with a `jax.sharding.PartitionSpec` in place of every leaf.
    """
    check_mesh(mesh)
    leaves, structure = jax.tree.flatten(tree)
    kinds, skipped = jax.tree.leaves(array_kinds(tree)), _stacked_axes(tree)
    specs = [
        _spec(tuple(getattr(leaf, "shape", ())), kind, skip, mesh, fully_sharded)
        for leaf, kind, skip in zip(leaves, kinds, skipped, strict=True)
    ]
    return jax.tree.unflatten(structure, specs)


def _spec(shape: tuple[int, ...], kind: ArrayKind, skip: int, mesh: Mesh, fully_sharded: bool) -> PartitionSpec:
    """The spec of one array, whose first `skip` axes are layers or experts."""
    sizes = dict(mesh.shape)
    names: list[str | None] = [None] * len(shape)
    divides = lambda name, axis: sizes.get(name, 1) > 1 and shape[axis] > 0 and shape[axis] % sizes[name] == 0
    own = _OVER_MODEL.get(kind)
    if own is not None and own + skip < len(shape) and divides("model", own + skip):
        names[own + skip] = "model"
    free = [axis for axis in range(skip, len(shape)) if names[axis] is None and divides("data", axis)]
    if fully_sharded and kind.is_matrix and free and math.prod(shape[skip:]) > 0 and len(shape) - skip > 1:
        names[max(free, key=lambda axis: shape[axis])] = "data"
    while names and names[-1] is None:
        names.pop()
    return PartitionSpec(*names)


def _stacked_axes(tree: Any) -> list[int]:
    """For every leaf, the number of leading axes that stacked layers and stacked experts add."""
    is_stack = lambda node: isinstance(node, ScannedBlocks | StackedLinear)
    counts = []
    for node in jax.tree.leaves(tree, is_leaf=is_stack):
        inside = node.blocks if isinstance(node, ScannedBlocks) else getattr(node, "weight", None)
        counts += [1 + skip for skip in _stacked_axes(inside)] if is_stack(node) else [0]
    return counts
