r"""Family K2: one decay per head and key channel (GLA, arXiv 2312.06635, section 4.3, does it in two levels of blocks).

The scores of one chunk, $A_{ij} = \sum_k q_{ik} k_{jk} \exp(a_{j+1,k} + .. + a_{i,k})$, are matrix products only if the
exponential is split between the two operands. If the whole chunk were split at one point, one factor would overflow:
$\exp(-b_j)$ does not exist in float32 once a chunk forgets by more than $e^{88}$. Here blocks are doubled. The seam is
the boundary between two neighbouring blocks of equal length. Every source lies left of it and every target right of it:

    exp(a_{j+1} + .. + a_i) = exp(source to seam) * exp(seam to target)

Both exponents on the right are at most 0. These sums are built along with the blocks, each as a sum of its terms.
Nothing is subtracted, so any decay is exact to rounding, -inf included. The sums of the last block, which is the chunk
itself, decay its reads of the state before it, and its writes until its end.
"""

from typing import NamedTuple

import einops
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._chunk import Chunk, per_head
from ._family import Family
from ._precision import product


class _Blocks(NamedTuple):
    """Sums of log-decays within every block of one length, for each head and key."""

    prefix: Inexact[Array, "heads blocks length key"]  # from the block's start to a token, inclusive
    suffix: Inexact[Array, "heads blocks length key"]  # from after a token to the block's end


def _levels(chunk: Chunk) -> list[_Blocks]:
    """Blocks of length 1, 2, 4 and so on, up to one that holds the chunk and is filled up with identity steps."""
    time = chunk.log_decay.shape[0]
    padding = (1 << max(time - 1, 0).bit_length()) - time
    tokens = jnp.pad(einops.rearrange(chunk.log_decay, "t h k -> h t 1 k"), [(0, 0), (0, padding), (0, 0), (0, 0)])
    levels = [_Blocks(tokens, jnp.zeros_like(tokens))]
    while levels[-1].prefix.shape[1] > 1:
        (prefix_left, prefix_right), (suffix_left, suffix_right) = (_pairs(array) for array in levels[-1])
        total_left, total_right = prefix_left[:, :, -1:], prefix_right[:, :, -1:]
        prefix = jnp.concatenate([prefix_left, total_left + prefix_right], axis=2)
        suffix = jnp.concatenate([suffix_left + total_right, suffix_right], axis=2)
        levels.append(_Blocks(prefix, suffix))
    return levels


def _pairs(array: Inexact[Array, "heads blocks length x"]) -> Inexact[Array, "2 heads pairs length x"]:
    return einops.rearrange(array, "h (b two) i x -> two h b i x", two=2)


def _per_head(array: Inexact[Array, "rows groups key"], chunk: Chunk) -> Inexact[Array, "heads rows key"]:
    return jnp.swapaxes(per_head(array, chunk), 0, 1)


def _scores(chunk: Chunk) -> Inexact[Array, "heads reads writes"]:
    """The lower triangle of scores, decayed."""
    time, queries, rank = chunk.log_decay.shape[0], chunk.reads_per_token, chunk.rank
    levels = _levels(chunk)
    padded = levels[0].prefix.shape[1]

    def tokens(array: Array, rows: int) -> Array:
        array = jnp.pad(array, [(0, 0), (0, (padded - time) * rows), (0, 0)])
        return jnp.reshape(array, (array.shape[0], padded, rows, -1))

    read, write = tokens(_per_head(chunk.read, chunk), queries), tokens(_per_head(chunk.write, chunk), rank)
    scores = product("hbik,hbjk->hbij", read, write)
    for prefix, suffix in levels[:-1]:
        (_, target), (source, _), (left, right) = _pairs(read), _pairs(write), _pairs(scores)
        target = target * jnp.exp(einops.repeat(_pairs(prefix)[1], "h b i k -> h b (i q) k", q=queries))
        source = source * jnp.exp(einops.repeat(_pairs(suffix)[0], "h b j k -> h b (j r) k", r=rank))
        across = product("hbik,hbjk->hbij", target, source)
        upper = jnp.concatenate([left, jnp.zeros_like(across)], axis=-1)
        scores = jnp.concatenate([upper, jnp.concatenate([across, right], axis=-1)], axis=-2)
        read, write = (einops.rearrange(array, "h (b two) i k -> h b (two i) k", two=2) for array in (read, write))
    return scores[:, 0, : time * queries, : time * rank]


def _within(chunk: Chunk) -> Array:
    return product("hij,jhv->ihv", _scores(chunk), chunk.value)


def _carried(chunk: Chunk, state: Inexact[Array, "heads key value"]) -> Array:
    decay = jnp.exp(_levels(chunk)[-1].prefix[:, 0, : chunk.log_decay.shape[0]])
    read = _per_head(chunk.read, chunk) * einops.repeat(decay, "h t k -> h (t q) k", q=chunk.reads_per_token)
    return product("hik,hkv->ihv", read, state)


def _increment(chunk: Chunk) -> Inexact[Array, "heads key value"]:
    until_end = jnp.exp(_levels(chunk)[-1].suffix[:, 0, : chunk.log_decay.shape[0]])
    write = _per_head(chunk.write, chunk) * einops.repeat(until_end, "h t k -> h (t r) k", r=chunk.rank)
    return product("hjk,jhv->hkv", write, chunk.value)


DECAY_PER_KEY = Family(
    name="K2, one decay per key",
    read=lambda chunk, state: _within(chunk) + _carried(chunk, state),
    increment=_increment,
    beside=lambda per_key, chunk: per_key[..., None],
    enter=lambda state, groups: state,
    leave=lambda state, shape: state,
)
