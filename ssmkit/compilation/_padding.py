"""The sizes that suit a device: what a TPU pads arrays to, and which products a GPU's tensor cores take whole."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from .._language_model import AbstractLanguageModel
from ._programs import arrays_by_kind, cache_of, nbytes
from ._targets import Device


_LANES = 128
_SUBLANES = 8
_ROW = 8
"""Entries of 16 bits that a tensor core reads at once, 16 bytes (CUTLASS's documentation of alignment)."""


class Fit(NamedTuple):
    """The bytes that a model takes on a device, beside those of its numbers."""

    weights: int
    weights_padded: int
    cache: int
    """The bytes of one sequence's cache, without tokens of attention."""
    cache_padded: int
    problems: list[str]
    """A sentence for each size that does not suit the device."""


def fit(model: AbstractLanguageModel[Any], device: Device) -> Fit:
    """How the arrays of a model fit a device.

    **Arguments:**

    - `model`: a model without values, as `abstract_model` makes it.
    - `device`: the device.
    """
    found = arrays_by_kind(model)
    weights = [array for _, array in found]
    cache = jax.tree.leaves(cache_of(model, 1, 0, inside=True))
    total = lambda arrays: sum(map(nbytes, arrays))
    if device.platform != "tpu":
        matrices = {array.shape for kind, array in found if kind.is_matrix and array.ndim > 1}
        odd = sorted(shape for shape in matrices if any(size % _ROW for size in shape[-2:]))
        return Fit(total(weights), total(weights), total(cache), total(cache), [_odd(device, shape) for shape in odd])
    padded = lambda leaves: sum(padded_size(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    wide = sorted({leaf.shape for leaf in cache if padded_size(leaf.shape) >= 1.5 * math.prod(leaf.shape) > _LANES})
    return Fit(total(weights), padded(weights), total(cache), padded(cache), [_wide(device, shape) for shape in wide])


def padded_size(shape: Sequence[int]) -> int:
    """The numbers for which a TPU reserves memory, in the best order of axes.

    One axis is padded to a multiple of 128 lanes, and one other to a multiple of 8 sublanes, or to 1, 2 or 4.
    """
    if len(shape) < 2:
        return math.prod(shape)
    return min(
        math.prod(shape) // max(shape[minor] * shape[other], 1) * _up(shape[minor], _LANES) * _sublanes(shape[other])
        for minor, other in itertools.permutations(range(len(shape)), 2)
    )


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _sublanes(size: int) -> int:
    return 1 << (size - 1).bit_length() if 0 < size < _SUBLANES else _up(size, _SUBLANES)


def _wide(device: Device, shape: Sequence[int]) -> str:
    times = padded_size(shape) / math.prod(shape)
    return (
        f"a cache of {' x '.join(map(str, shape))} takes {times:.3g} times its bytes on {device.name}, which pads one "
        f"axis to a multiple of {_LANES}: a `state_size`, `head_dim` or width of such a multiple wastes nothing"
    )


def _odd(device: Device, shape: Sequence[int]) -> str:
    return (
        f"a matrix of {' x '.join(map(str, shape))} keeps the tensor cores of {device.name} from reading whole rows: "
        f"choose sizes that are multiples of {_ROW}"
    )
