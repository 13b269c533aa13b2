"""Matrices that are spread over the rows' devices, gathered where they are used (ZeRO-3, arXiv 1910.02054)."""

import dataclasses
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from .._extent import Extent
from .._residual_model import AbstractResidualLanguageModel
from .._types import Valid
from ..mixers._mixer import AbstractBlock, AbstractMixer
from ..mixers._scanned import ScannedBlocks


Tree = TypeVar("Tree")
WHOLE = -1
"""In place of an axis: the array is not spread over `data`."""


def gathered(model: Any, axes: PyTree[int]) -> Any:
    """The model whose arrays are spread over `data`, as a model that gathers them.

    Blocks are gathered one by one, when they run. All other arrays are gathered at once.

    **Arguments:**

    - `model`: the model; its arrays are one device's parts, inside a `jax.shard_map` over `data`.
    - `axes`: for every weight, the axis that is spread over `data`, or `WHOLE`. Other leaves are `None`.
    """
    if all(axis == WHOLE for axis in jax.tree.leaves(axes)):
        return model
    fields = dataclasses.fields(model) if isinstance(model, AbstractResidualLanguageModel) else ()
    if "blocks" not in {field.name for field in fields}:  # of another kind, or with blocks that it computes
        return _whole(model, tuple(jax.tree.leaves(axes)))
    one_by_one = tuple(map(_gathered_block, model.blocks, axes.blocks))
    outside = lambda tree: eqx.tree_at(lambda tree: tree.blocks, tree, ())
    rest = _whole(outside(model), tuple(jax.tree.leaves(outside(axes))))
    return eqx.tree_at(lambda tree: tree.blocks, rest, one_by_one)


class GatheredBlock(AbstractBlock[Any]):
    """A block that gathers its arrays each time it runs, and again for the gradient.

    No gathered array outlives the block. The features inside the block are computed again for the gradient too.
    """

    block: AbstractMixer[Any]
    axes: tuple[int, ...] = eqx.field(static=True)

    def init_cache(self) -> Any:
        """The block's cache."""
        return _whole(self.block, self.axes).init_cache()

    def reserve(self, cache: Any, tokens: int) -> Any:
        """As `AbstractMixer.reserve`."""
        return self.block.reserve(cache, tokens)

    def prefill(
        self, x: Float[Array, "time width"], cache: Any, extent: Extent = Extent()
    ) -> tuple[Float[Array, "time width"], Any]:
        """As `AbstractMixer.prefill`."""
        run = lambda block, x, cache, extent: _whole(block, self.axes).prefill(x, cache, extent)
        return eqx.filter_checkpoint(run)(self.block, x, cache, extent)

    def step(self, x: Float[Array, " width"], cache: Any, *, valid: Valid | None = None) -> Any:
        """As `AbstractMixer.step`."""
        return _whole(self.block, self.axes).step(x, cache, valid=valid)


def _gathered_block(block: AbstractMixer[Any], axes: Any, layers: int = 0) -> AbstractMixer[Any]:
    """A block that gathers itself.

    **Arguments:**

    - `axes`: the axes of its arrays.
    - `layers`: the number of leading axes of its arrays that the loops over layers take away.
    """
    if isinstance(block, ScannedBlocks):
        inner = (_gathered_block(one, own, layers + 1) for one, own in zip(block.blocks, axes.blocks, strict=True))
        return ScannedBlocks(tuple(inner), block.layers)
    inside = tuple(axis if axis == WHOLE else axis - layers for axis in jax.tree.leaves(axes))
    return block if set(inside) <= {WHOLE} else GatheredBlock(block, inside)


def _whole(tree: Tree, axes: tuple[int, ...]) -> Tree:
    """The tree with whole arrays. The transpose of a gather is a sum that leaves each device its part of it."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    leaves = [
        leaf if axis == WHOLE else jax.lax.all_gather(leaf, "data", axis=axis, tiled=True)
        for leaf, axis in zip(leaves, axes, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(structure, leaves), rest)
