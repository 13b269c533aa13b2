"""What a program must at least read and multiply: the bounds that its cycles are held against."""

import math
from typing import Any, NamedTuple

import jax

from .._language_model import AbstractLanguageModel
from ..layers._array_kinds import ArrayKind, array_kinds
from ._programs import is_form


class Weights(NamedTuple):
    """The weights of a model, in numbers and bytes."""

    parameters: int
    nbytes: int
    read: int
    """The bytes that a token of every row reads: all but an embedding that is not the head."""
    projections: int
    """The entries of the matrices that every token is multiplied with."""
    head: int
    """The entries of the matrix that gives the logits."""


def weights_of(model: AbstractLanguageModel) -> Weights:
    """Count the weights of a model without values. The scales of 8-bit matrices have bytes, and are no entries.

    **Arguments:**

    - `model`: the model.
    """
    found = [
        (kind, leaf)
        for kind, leaf in zip(jax.tree.leaves(array_kinds(model)), jax.tree.leaves(model), strict=True)
        if is_form(leaf)
    ]
    size = lambda leaf: math.prod(leaf.shape)
    nbytes = lambda *without: sum(size(leaf) * leaf.dtype.itemsize for kind, leaf in found if kind not in without)
    has_head = any(kind is ArrayKind.HEAD for kind, _ in found)
    head = ArrayKind.HEAD if has_head else ArrayKind.EMBEDDING
    projections = ArrayKind.PROJECTION_IN, ArrayKind.PROJECTION_OUT
    entries = lambda *kinds: sum(size(leaf) for kind, leaf in found if kind in kinds and leaf.ndim > 1)
    return Weights(
        parameters=sum(size(leaf) for _, leaf in found),
        nbytes=nbytes(),
        read=nbytes(*([ArrayKind.EMBEDDING] if has_head else [])),
        projections=entries(*projections),
        head=entries(head),
    )


class Bound(NamedTuple):
    """The least time of a piece of work on one device, from its published figures."""

    memory: float
    """Seconds to read the weights once, and to read and write the states, at the bandwidth of the memory."""
    products: float
    """Seconds for the products with weight matrices, at the peak of bfloat16. Those of the recurrence do not count."""


def bound(weights: Weights, cache_bytes: int, tokens: int, logits: int, device: Any) -> Bound:
    """The bound of a step or a prompt.

    **Arguments:**

    - `weights`: those of the model.
    - `cache_bytes`: the bytes of all rows' caches on one device.
    - `tokens`, `logits`: the number of tokens of all rows on one device, and of those whose logits are computed.
    - `device`: a `Device`.
    """
    flops = 2 * (tokens * weights.projections + logits * weights.head)
    return Bound((weights.read + 2 * cache_bytes) / device.bandwidth, flops / device.flops)
