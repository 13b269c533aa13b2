"""What a program must at least read and multiply: the bounds that its cycles are held against."""

from typing import NamedTuple

from .._language_model import AbstractLanguageModel
from ..layers._array_kinds import ArrayKind
from ._programs import arrays_by_kind, nbytes
from ._targets import Device


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
    found = arrays_by_kind(model)
    has_head = any(kind is ArrayKind.HEAD for kind, _ in found)
    head = ArrayKind.HEAD if has_head else ArrayKind.EMBEDDING
    projections = ArrayKind.PROJECTION_IN, ArrayKind.PROJECTION_OUT, ArrayKind.SHARED
    entries = lambda *kinds: sum(array.size for kind, array in found if kind in kinds and array.ndim > 1)
    return Weights(
        parameters=sum(array.size for _, array in found),
        nbytes=sum(nbytes(array) for _, array in found),
        read=sum(nbytes(array) for kind, array in found if not (has_head and kind is ArrayKind.EMBEDDING)),
        projections=entries(*projections),
        head=entries(head),
    )


class Bound(NamedTuple):
    """The least time of a piece of work on one device, from its published figures."""

    memory: float
    """Seconds to read the weights once, and to read and write the states, at the bandwidth of the memory."""
    products: float
    """Seconds for the products with weight matrices, at the peak of bfloat16. Those of the recurrence do not count."""


def bound(weights: Weights, cache_bytes: int, tokens: int, logits: int, device: Device) -> Bound:
    """The bound of a step or a prompt.

    **Arguments:**

    - `weights`: those of the model.
    - `cache_bytes`: the bytes of all rows' caches on one device.
    - `tokens`, `logits`: the number of tokens of all rows on one device, and of those whose logits are computed.
    - `device`: the device.
    """
    flops = 2 * (tokens * weights.projections + logits * weights.head)
    return Bound((weights.read + 2 * cache_bytes) / device.bandwidth, flops / device.flops)
