"""Decays between every two tokens of a chunk, without cancellation."""

import jax.numpy as jnp
from jaxtyping import Array, Inexact


_BLOCK = 16


def pairwise_decays(log_decay: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk chunk"]:
    r"""$L_{ij} = \exp(a_{j+1} + .. + a_i)$ for $j \le i$, and 0 for $j > i$, of log-decays $a$.

    The usual `cumsum[i] - cumsum[j]` loses `|cumsum| * 6e-8` in float32: with a cumulative log-decay of -20000 the
    weights of neighbouring tokens are wrong in the third digit. Here every exponent is computed as a sum of its terms,
    and nothing is ever subtracted. Any decay is therefore exact to rounding, and -inf is an ordinary value. Two levels
    keep the cost low. Inside blocks of 16 tokens the sums are computed directly. Across blocks the decay is a product
    of three factors,

        L = (from the block's start to the target) * (whole blocks between) * (from the source to its block's end).

    Each factor is at most 1, and only one entry in `chunk / 16` needs its own exponential.
    """
    chunk = log_decay.shape[-1]
    if chunk <= _BLOCK:
        return jnp.exp(_direct(log_decay))
    padding = -chunk % _BLOCK
    blocks = jnp.pad(log_decay, [(0, 0)] * (log_decay.ndim - 1) + [(0, padding)])
    blocks = jnp.reshape(blocks, (*log_decay.shape[:-1], -1, _BLOCK))

    prefix = jnp.cumsum(blocks, axis=-1)
    to_target, from_source = jnp.exp(prefix), jnp.exp(suffix_sums(blocks))
    # between[I, J]: the decay of the whole blocks J+1 .. I-1, which is that from J to I-1 among blocks; 0 if J >= I.
    between = pairwise_decays(prefix[..., -1])[..., :-1, :]
    between = jnp.pad(between, [(0, 0)] * (log_decay.ndim - 1) + [(1, 0), (0, 0)])
    across = to_target[..., :, :, None, None] * between[..., :, None, :, None] * from_source[..., None, None, :, :]
    inside = jnp.exp(_direct(blocks))[..., :, :, None, :]
    same = jnp.eye(blocks.shape[-2], dtype=bool)[:, None, :, None]
    decays = jnp.where(same, inside, across)
    decays = jnp.reshape(decays, (*log_decay.shape[:-1], chunk + padding, chunk + padding))
    return decays[..., :chunk, :chunk]


def suffix_sums(x: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk"]:
    r"""$\sum_{s>j} x_s$: the log-decay of a token's contribution until the end of the chunk."""
    shifted = jnp.pad(x[..., 1:], [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    return jnp.flip(jnp.cumsum(jnp.flip(shifted, -1), axis=-1), -1)


def _direct(x: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk chunk"]:
    chunk = x.shape[-1]
    row, column = jnp.arange(chunk)[:, None], jnp.arange(chunk)[None, :]
    terms = jnp.where(row > column, x[..., :, None], jnp.zeros((), x.dtype))
    return jnp.where(row >= column, jnp.cumsum(terms, axis=-2), -jnp.inf)
