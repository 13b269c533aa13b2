"""Sums over segments of a chunk, without cancellation."""

import jax.numpy as jnp
from jaxtyping import Array, Inexact


_BLOCK = 16


def segment_sums(x: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk chunk"]:
    r"""$D_{ij} = \sum_{s=j+1}^{i} x_s$ for $j \le i$, and $-\infty$ for $j > i$.

    The usual `cumsum[i] - cumsum[j]` loses `|cumsum| * 6e-8` in float32: with a cumulative log-decay of -20000 the
    weights of neighbouring tokens are wrong in the third digit. Here every entry is a sum of the terms it is made of
    and nothing is ever subtracted, so terms of one sign give full relative precision, and -inf is an ordinary value.
    Two levels keep it cheap: inside blocks of 16 rows the sums are taken directly; across blocks

        D = (prefix inside the target's block) + (whole blocks between) + (suffix inside the source's block).
    """
    chunk = x.shape[-1]
    if chunk <= _BLOCK:
        return _direct(x)
    padding = -chunk % _BLOCK
    blocks = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
    blocks = jnp.reshape(blocks, (*x.shape[:-1], -1, _BLOCK))
    count = blocks.shape[-2]

    prefix = jnp.cumsum(blocks, axis=-1)
    suffix = suffix_sums(blocks)
    # between[I, J]: the whole blocks J+1 .. I-1, which is the segment sum (J, I-1] of the block totals.
    between = jnp.pad(segment_sums(prefix[..., -1])[..., :-1, :], [(0, 0)] * (x.ndim - 1) + [(1, 0), (0, 0)])
    across = prefix[..., :, :, None, None] + between[..., :, None, :, None] + suffix[..., None, None, :, :]
    inside = _direct(blocks)[..., :, :, None, :]
    row, column = jnp.arange(count)[:, None, None, None], jnp.arange(count)[None, None, :, None]
    sums = jnp.where(row == column, inside, jnp.where(row > column, across, -jnp.inf))
    sums = jnp.reshape(sums, (*x.shape[:-1], chunk + padding, chunk + padding))
    return sums[..., :chunk, :chunk]


def suffix_sums(x: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk"]:
    r"""$\sum_{s>j} x_s$: what decays a token's contribution until the end of the chunk."""
    shifted = jnp.pad(x[..., 1:], [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    return jnp.flip(jnp.cumsum(jnp.flip(shifted, -1), axis=-1), -1)


def _direct(x: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk chunk"]:
    chunk = x.shape[-1]
    row, column = jnp.arange(chunk)[:, None], jnp.arange(chunk)[None, :]
    terms = jnp.where(row > column, x[..., :, None], jnp.zeros((), x.dtype))
    return jnp.where(row >= column, jnp.cumsum(terms, axis=-2), -jnp.inf)
