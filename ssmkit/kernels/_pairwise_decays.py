"""Decays between every two tokens of a chunk, without cancellation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._platform import platform


_BLOCK = 16
_UNIT = 128
_MOST = 1024
"""The largest chunk whose sums of multiples of `1 / _UNIT` have at most 24 bits."""
_VANISHED = {32: -110.0, 64: -750.0}
"""Log-decays, by the bits of their dtype, whose exponential is 0."""


def pairwise_decays(log_decay: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk chunk"]:
    r"""$L_{ij} = \exp(a_{j+1} + .. + a_i)$ for $j \le i$, and 0 for $j > i$, of log-decays $a$.

    The usual `cumsum[i] - cumsum[j]` loses `|cumsum| * 6e-8` in float32: with a cumulative log-decay of -20000 the
    weights of neighbouring tokens are wrong in the third digit. Here any decay is exact to rounding, and -inf is an
    ordinary value. There are two ways, of which each is quick on one kind of platform.

    On CPU, and in chunks of more than 1024 tokens, every exponent is computed as a sum of its terms, and nothing is
    ever subtracted. Two levels keep the cost low. Inside blocks of 16 tokens the sums are computed directly. Across
    blocks the decay is a product of three factors,

        L = (from the block's start to the target) * (whole blocks between) * (from the source to its block's end).

    Each factor is at most 1, and only one entry in `chunk / 16` needs its own exponential.

    Elsewhere, a log-decay is split into a multiple of 1/128 and a rest of at most 1/256. Sums of such multiples, and
    their differences, are exact in float32 in chunks of up to 1024 tokens, and sums of rests are small. Every entry
    needs its own exponential, but nothing else of its size is computed.
    """
    exact = log_decay.shape[-1] <= _MOST
    return _from_fixed_point(log_decay) if exact and platform() != "cpu" else _from_blocks(log_decay)


def _from_blocks(log_decay: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk chunk"]:
    """The decays as products of decays within blocks and across them."""
    chunk = log_decay.shape[-1]
    if chunk <= _BLOCK:
        return jnp.exp(_direct(log_decay))
    padding = -chunk % _BLOCK
    blocks = jnp.pad(log_decay, [(0, 0)] * (log_decay.ndim - 1) + [(0, padding)])
    blocks = jnp.reshape(blocks, (*log_decay.shape[:-1], -1, _BLOCK))

    prefix = jnp.cumsum(blocks, axis=-1)
    to_target, from_source = jnp.exp(prefix), jnp.exp(suffix_sums(blocks))
    # between[I, J]: the decay of the whole blocks J+1 .. I-1, which is that from J to I-1 among blocks; 0 if J >= I.
    between = _from_blocks(prefix[..., -1])[..., :-1, :]
    between = jnp.pad(between, [(0, 0)] * (log_decay.ndim - 1) + [(1, 0), (0, 0)])
    across = to_target[..., :, :, None, None] * between[..., :, None, :, None] * from_source[..., None, None, :, :]
    inside = jnp.exp(_direct(blocks))[..., :, :, None, :]
    same = jnp.eye(blocks.shape[-2], dtype=bool)[:, None, :, None]
    decays = jnp.where(same, inside, across)
    decays = jnp.reshape(decays, (*log_decay.shape[:-1], chunk + padding, chunk + padding))
    return decays[..., :chunk, :chunk]


def _from_fixed_point(log_decay: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk chunk"]:
    """The decays as exponentials of differences of sums, which are exact but for the sums of small rests."""
    real = jnp.real(log_decay)
    real = jnp.maximum(real, _VANISHED[jnp.finfo(real.dtype).bits])
    multiples = jax.lax.stop_gradient(jnp.round(real * _UNIT) / _UNIT)
    exponents = _differences(multiples) + _differences(real - multiples)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, exponents.shape, exponents.ndim - axis) for axis in (2, 1))
    exponents = jnp.where(row > column, exponents, jnp.where(row == column, 0.0, -jnp.inf).astype(exponents.dtype))
    if jnp.iscomplexobj(log_decay):
        angles = jnp.where(row > column, _differences(jnp.imag(log_decay)), jnp.zeros_like(exponents))
        exponents = jax.lax.complex(exponents, angles)
    return jnp.exp(exponents)


def _differences(x: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk chunk"]:
    sums = jnp.cumsum(x, axis=-1)
    return sums[..., :, None] - sums[..., None, :]


def suffix_sums(x: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk"]:
    r"""$\sum_{s>j} x_s$: the log-decay of a token's contribution until the end of the chunk."""
    shifted = jnp.pad(x[..., 1:], [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    return jnp.flip(jnp.cumsum(jnp.flip(shifted, -1), axis=-1), -1)


def _direct(x: Inexact[Array, "*axes chunk"]) -> Inexact[Array, "*axes chunk chunk"]:
    chunk = x.shape[-1]
    row, column = jnp.arange(chunk)[:, None], jnp.arange(chunk)[None, :]
    terms = jnp.where(row > column, x[..., :, None], jnp.zeros((), x.dtype))
    return jnp.where(row >= column, jnp.cumsum(terms, axis=-2), -jnp.inf)
