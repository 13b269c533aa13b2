"""Blocks one after another: the cache is one entry per block."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from .._extent import Extent
from .._types import Valid
from ._mixer import AbstractMixer


Blocks = tuple[AbstractMixer[Any], ...]
Caches = tuple[Any, ...]


def init_caches(blocks: Blocks) -> Caches:
    """The blocks' empty caches."""
    return tuple(block.init_cache() for block in blocks)


def reserve_all(blocks: Blocks, caches: Caches, tokens: int) -> Caches:
    """Room for `tokens` more tokens in every block's cache."""
    return tuple(block.reserve(own, tokens) for block, own in _pairs(blocks, caches))


def prefill_all(
    blocks: Blocks, x: Float[Array, "time width"], caches: Caches, extent: Extent
) -> tuple[Float[Array, "time width"], Caches]:
    """Run many tokens through all blocks."""
    return _through(blocks, x, caches, lambda block, x, own: _prefill(block, x, own, extent))


def step_all(
    blocks: Blocks, x: Float[Array, " width"], caches: Caches, valid: Valid | None
) -> tuple[Float[Array, " width"], Caches]:
    """Run one token through all blocks."""
    return _through(blocks, x, caches, lambda block, x, own: _step(block, x, own, valid))


def _through(blocks: Blocks, x: Array, caches: Caches, run: Callable[..., tuple[Array, Any]]) -> tuple[Array, Caches]:
    """Run every block in order, each on the features after the one before and on its own cache."""
    after = []
    for block, own in _pairs(blocks, caches):
        x, own = run(block, x, own)
        after.append(own)
    return x, tuple(after)


def _pairs(blocks: Blocks, caches: Any) -> list[tuple[AbstractMixer[Any], Any]]:
    if not isinstance(caches, tuple) or len(caches) != len(blocks):
        got = len(caches) if isinstance(caches, tuple) else type(caches).__name__
        raise ValueError(
            f"`cache` must hold one entry per block, {len(blocks)}, got {got}. Start from `model.init_cache()`."
        )
    return list(zip(blocks, caches, strict=True))


# Blocks of the same structure are traced once, however deep the model.


@eqx.filter_jit
def _prefill(block: AbstractMixer[Any], x: Array, cache: Any, extent: Extent) -> tuple[Array, Any]:
    return block.prefill(x, cache, extent)


@eqx.filter_jit
def _step(block: AbstractMixer[Any], x: Array, cache: Any, valid: Valid | None) -> tuple[Array, Any]:
    return block.step(x, cache, valid=valid)
