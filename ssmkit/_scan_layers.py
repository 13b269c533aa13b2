"""Stacking of a model's equal blocks, so that one compiled loop runs them, and the way back."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ._residual_model import AbstractResidualLanguageModel
from ._types import checks_itself
from .mixers._mixer import AbstractMixer
from .mixers._scanned import ScannedBlocks


Model = TypeVar("Model")


@checks_itself
def scan_layers(model: Model) -> Model:
    """Stack the arrays of equal neighbouring blocks, so that a loop runs them and XLA compiles them once.

    The time and the size of compilation no longer grow with depth. Results stay the same, except that `forward` with a
    key drops other features. Blocks are equal if they have the same structure, options, shapes and dtypes. Patterns of
    several blocks are found too: of `A B A B A B C`, one loop runs `A B` three times. A model without a repetition is
    returned unchanged.

    On a TPU, the loop reads the stacked weights in place. A GPU copies large matrices of each layer before it
    multiplies with them, and a CPU copies all of them, which makes decoding slower. The experts of one token are read
    in place everywhere.

    **Arguments:**

    - `model`: a model of residual blocks. Its arrays are copied; `ssmkit.from_pretrained(..., scan_layers=True)`
        stacks while it loads, and never holds both.

    **Returns:** the model with an `ssmkit.ScannedBlocks` in place of each repetition.

    **Raises:** `TypeError` for another kind of model, or for one that computes its blocks.
    """
    _check_blocks(model)
    return scanned(model, jnp.stack)


@checks_itself
def unscan_layers(model: Model) -> Model:
    """Undo `ssmkit.scan_layers`: one block for every layer.

    **Arguments:**

    - `model`: a model of residual blocks, with or without `ssmkit.ScannedBlocks`.

    **Returns:** the model, of which the arrays of scanned blocks are copied.

    **Raises:** as `ssmkit.scan_layers`.
    """
    _check_blocks(model)
    return unscanned(model)


def scanned(model: Model, stack: Callable[[list[Any]], Any]) -> Model:
    """As `scan_layers`, for any leaves with a shape and a dtype, which `stack` stacks. Other models stay unchanged."""
    return _with_blocks(model, lambda blocks: tuple(_runs(blocks, stack)))


def unscanned(model: Model) -> Model:
    """As `unscan_layers`, but models of other kinds stay unchanged. Arrays of NumPy are not copied."""
    return _with_blocks(model, lambda blocks: tuple(one for block in blocks for one in _layers(block)))


def depth(model: AbstractResidualLanguageModel[Any]) -> int:
    """The number of a model's blocks, those of all layers of a `ScannedBlocks` counted."""
    return sum(one.layers * len(one.blocks) if isinstance(one, ScannedBlocks) else 1 for one in model.blocks)


def _with_blocks(model: Any, change: Callable[[Any], Any]) -> Any:
    if not _has_blocks(model):
        return model
    return eqx.tree_at(lambda model: model.blocks, model, change(model.blocks))


def _has_blocks(model: Any) -> bool:
    fields = dataclasses.fields(model) if isinstance(model, AbstractResidualLanguageModel) else ()
    return "blocks" in {field.name for field in fields}


def _check_blocks(model: Any) -> None:
    name = type(model).__name__
    if not isinstance(model, AbstractResidualLanguageModel):
        raise TypeError(f"`model` must be an `ssmkit.AbstractResidualLanguageModel`, got {name}.")
    if not _has_blocks(model):
        raise TypeError(f"the blocks of {name} are computed from other arrays, so they cannot be stacked once.")


def _runs(blocks: Sequence[AbstractMixer[Any]], stack: Callable[[list[Any]], Any]) -> Iterator[AbstractMixer[Any]]:
    """The blocks, with one `ScannedBlocks` in place of each repetition."""
    kinds, start = _kinds(blocks), 0
    while start < len(blocks):
        period, repeats = _longest_run(kinds[start:])
        layers = [tuple(blocks[start + i * period :][:period]) for i in range(repeats)]
        start += period * repeats
        if repeats == 1:
            yield layers[0][0]
        else:
            join = lambda *leaves: stack(list(leaves)) if _is_array(leaves[0]) else leaves[0]
            yield ScannedBlocks(jax.tree.map(join, *layers), repeats)


def _layers(block: AbstractMixer[Any]) -> Iterator[AbstractMixer[Any]]:
    """The blocks of every layer of a `ScannedBlocks`, or another block itself."""
    if isinstance(block, ScannedBlocks):
        for i in range(block.layers):
            yield from jax.tree.map(lambda leaf, i=i: leaf[i] if _is_array(leaf) else leaf, block.blocks)
    else:
        yield block


def _longest_run(kinds: Sequence[int]) -> tuple[int, int]:
    """The period and the repeats of the longest repetition from the start; of several, the one of shortest period."""
    best = 1, 1
    for period in range(1, len(kinds) // 2 + 1):
        repeats = 1
        while kinds[repeats * period :][:period] == kinds[:period]:
            repeats += 1
        if repeats > 1 and period * repeats > best[0] * best[1]:
            best = period, repeats
    return best


def _kinds(blocks: Sequence[AbstractMixer[Any]]) -> list[int]:
    """A number for every block. Equal blocks have equal numbers."""
    forms, kinds = [], []
    for block in blocks:
        form = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype) if _is_array(leaf) else leaf, block)
        equal = [i for i, other in enumerate(forms) if eqx.tree_equal(form, other)]
        kinds.append(equal[0] if equal else len(forms))
        forms += [] if equal else [form]
    return kinds


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
