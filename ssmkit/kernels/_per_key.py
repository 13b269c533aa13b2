r"""Family K2: one decay per head and key channel (GLA, arXiv 2312.06635, section 4.3, does it in two levels of blocks).

The scores of one chunk, $A_{ij} = \sum_k q_{ik} k_{jk} \exp(a_{j+1,k} + .. + a_{i,k})$, are matrix products only if the
exponential is split between the two operands. Split at one point for the whole chunk, one factor overflows:
$\exp(-b_j)$ does not exist in float32 once a chunk forgets by more than $e^{88}$. Here blocks are doubled: where two
neighbouring blocks of equal length meet, every source lies left of the seam and every target right of it, and

    exp(a_{j+1} + .. + a_i) = exp(source to seam) * exp(seam to target)

has two exponents at most 0. These sums are built along with the blocks, each from the terms it is made of: nothing is
subtracted, so any decay is exact to rounding, -inf included. With `time` tokens there are log2(time) seams.
"""

import einops
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._chunk import Chunk, per_head
from ._family import Family
from ._segment import suffix_sums


def _per_head(array: Inexact[Array, "rows groups key"], chunk: Chunk) -> Inexact[Array, "heads rows key"]:
    return jnp.swapaxes(per_head(array, chunk), 0, 1)


def _scores(chunk: Chunk) -> Inexact[Array, "heads reads writes"]:
    """The lower triangle of scores, decayed."""
    time, queries, rank = chunk.log_decay.shape[0], chunk.reads_per_token, chunk.rank
    padded = 1 << max(time - 1, 0).bit_length()

    def blocks(array: Array, rows: int) -> Array:
        array = jnp.pad(array, [(0, 0), (0, (padded - time) * rows), (0, 0)])
        return jnp.reshape(array, (array.shape[0], padded, rows, -1))

    read, write = blocks(_per_head(chunk.read, chunk), queries), blocks(_per_head(chunk.write, chunk), rank)
    prefix = blocks(einops.rearrange(chunk.log_decay, "t h k -> h t k"), 1)  # block start to target, inclusive
    suffix = jnp.zeros_like(prefix)  # after source to block end
    scores = jnp.einsum("hbik,hbjk->hbij", read, write)
    while prefix.shape[1] > 1:
        pairs = lambda array: einops.rearrange(array, "h (b two) i k -> two h b i k", two=2)  # noqa: E731
        (_, target), (source, _), (left, right) = pairs(read), pairs(write), pairs(scores)
        (prefix_left, prefix_right), (suffix_left, suffix_right) = pairs(prefix), pairs(suffix)
        target = target * jnp.exp(einops.repeat(prefix_right, "h b i k -> h b (i q) k", q=queries))
        source = source * jnp.exp(einops.repeat(suffix_left, "h b j k -> h b (j r) k", r=rank))
        across = jnp.einsum("hbik,hbjk->hbij", target, source)
        upper = jnp.concatenate([left, jnp.zeros_like(across)], axis=-1)
        scores = jnp.concatenate([upper, jnp.concatenate([across, right], axis=-1)], axis=-2)
        total_left, total_right = prefix_left[:, :, -1:], prefix_right[:, :, -1:]
        prefix = jnp.concatenate([prefix_left, total_left + prefix_right], axis=2)
        suffix = jnp.concatenate([suffix_left + total_right, suffix_right], axis=2)
        read, write = (einops.rearrange(array, "h (b two) i k -> h b (two i) k", two=2) for array in (read, write))
    return scores[:, 0, : time * queries, : time * rank]


def _within(chunk: Chunk) -> Array:
    return jnp.einsum("hij,jhv->ihv", _scores(chunk), chunk.value)


def _carried(chunk: Chunk, state: Inexact[Array, "heads key value"]) -> Array:
    decay = jnp.exp(jnp.cumsum(chunk.log_decay, axis=0))
    read = _per_head(chunk.read, chunk) * einops.repeat(decay, "t h k -> h (t q) k", q=chunk.reads_per_token)
    return jnp.einsum("hik,hkv->ihv", read, state)


def _summary(chunk: Chunk) -> tuple[Array, Array]:
    log_decay = einops.rearrange(chunk.log_decay, "t h k -> h k t")
    until_end = einops.repeat(jnp.exp(suffix_sums(log_decay)), "h k t -> h (t r) k", r=chunk.rank)
    increment = jnp.einsum("hjk,jhv->hkv", _per_head(chunk.write, chunk) * until_end, chunk.value)
    return jnp.exp(jnp.sum(log_decay, axis=-1))[..., None], increment


DECAY_PER_KEY = Family(
    within=_within,
    carried=_carried,
    summary=_summary,
    enter=lambda state, groups: state,
    leave=lambda state, shape: state,
)
