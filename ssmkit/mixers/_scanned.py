"""Equal blocks as one block: a loop over layers, compiled once."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._extent import Extent
from .._types import Valid
from ..layers._dropout import with_split_keys
from ..layers._experts import Experts
from ._blocks import Blocks, Caches, init_caches, prefill_all, reserve_all, step_all
from ._mixer import AbstractBlock, AbstractMixer


class ScannedBlocks(AbstractBlock[tuple[Any, ...]]):
    """Equal layers one after another, as one block: their arrays are stacked, and one loop runs them.

    `ssmkit.scan_layers` makes it of a model's blocks. XLA compiles a layer once, however many there are. The cache is
    the tuple of the caches of the blocks of one layer, with a leading axis `layers` on every array, inside the batch
    axis. The loop updates it in place.
    """

    blocks: tuple[AbstractMixer[Any], ...]
    """The blocks of a layer. Every array has a leading axis `layers`."""
    layers: int = eqx.field(static=True)
    """The number of layers."""

    def init_cache(self) -> Caches:
        """The empty caches of all layers."""
        arrays, constant = self._parts()
        init = lambda arrays: init_caches(eqx.combine(arrays, constant))
        return jax.vmap(init, axis_size=self.layers)(arrays)

    def reserve(self, cache: Caches, tokens: int) -> Caches:
        """As `AbstractMixer.reserve`: layers are rows to the blocks."""
        return reserve_all(self.blocks, cache, tokens)

    def prefill(
        self, x: Float[Array, "time width"], cache: Caches, extent: Extent = Extent()
    ) -> tuple[Float[Array, "time width"], Caches]:
        """As `AbstractMixer.prefill`."""
        return self._scan(lambda blocks, x, own: prefill_all(blocks, x, own, extent), x, cache)

    def step(
        self, x: Float[Array, " width"], cache: Caches, *, valid: Valid | None = None
    ) -> tuple[Float[Array, " width"], Caches]:
        """As `AbstractMixer.step`."""
        return self._scan(lambda blocks, x, own: step_all(blocks, x, own, valid), x, cache, one_token=True)

    def _parts(self) -> tuple[Blocks, Blocks]:
        """The stacked arrays of the blocks, and all else. Each layer has its own keys for dropout."""
        blocks = with_split_keys(self.blocks, self.layers)
        return eqx.partition(blocks, lambda leaf: isinstance(leaf, jax.Array | np.ndarray))

    def _scan(
        self,
        run: Callable[[Blocks, Float[Array, "*time width"], Caches], tuple[Float[Array, "*time width"], Caches]],
        x: Float[Array, "*time width"],
        cache: Caches,
        *,
        one_token: bool = False,
    ) -> tuple[Float[Array, "*time width"], Caches]:
        """Run all layers. The loop carries the whole cache, of which each layer reads and writes its own slice.

        XLA updates what a loop carries in place. If the loop took the caches as inputs and gave new ones as outputs,
        they would lie in memory twice, and a loop over tokens would copy them for every token. A loop may copy what a
        layer takes of the stacked arrays, too. One token reads few of a layer's experts, so these are not taken out.
        """
        if sizes := {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(cache)} - {(self.layers,)}:
            raise ValueError(
                f"`cache` must have a leading axis of {self.layers} layers on every array, got sizes {sorted(sizes)}. "
                "Start from `init_cache()`."
            )
        arrays, constant = self._parts()
        if one_token:
            experts, arrays = eqx.partition(arrays, jax.tree.map(_is_experts, arrays, is_leaf=_is_experts))
            constant = eqx.combine(constant, experts)

        def of_layer(arrays, index):
            blocks = eqx.combine(arrays, constant)
            if not one_token:
                return blocks
            take = lambda node: node.of_layer(index) if _is_experts(node) else node
            return jax.tree.map(take, blocks, is_leaf=_is_experts)

        def layer(x, cache, index, arrays):
            own = jax.tree.map(lambda all: jax.lax.dynamic_index_in_dim(all, index, keepdims=False), cache)
            x, own = run(of_layer(arrays, index), x, own)
            write = lambda all, new: jax.lax.dynamic_update_index_in_dim(all, new, index, 0)
            return x, jax.tree.map(write, cache, own)

        indices = jnp.arange(self.layers, dtype=jnp.int32)
        first = jax.tree.map(lambda leaf: leaf[0], (indices, arrays))
        x = x.astype(jax.eval_shape(layer, x, cache, *first)[0].dtype)  # layers may widen a narrow stream
        (x, cache), _ = jax.lax.scan(lambda carry, one: (layer(*carry, *one), None), (x, cache), (indices, arrays))
        return x, cache


def _is_experts(node: Any) -> bool:
    return isinstance(node, Experts)
