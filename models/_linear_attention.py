"""The common part of RetNet, GLA, HGRN2 and RWKV-6: the split of channels into heads, and short convolutions."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._projections import NORMAL


def state_shape(name: str, width: int, num_heads: int, expand_k: float, expand_v: float) -> tuple[int, int, int]:
    """The state shape: heads with their shares of `expand_k * width` key and `expand_v * width` value channels.

    **Raises:** `ValueError`, on behalf of the class `name`, when the heads do not divide them.
    """
    for argument, expand in (("expand_k", expand_k), ("expand_v", expand_v)):
        channels = int(expand * width)
        if channels < 1 or channels % num_heads != 0:
            raise ValueError(
                f"{name}: int(`{argument}` * `width`) must be a positive multiple of `num_heads` = {num_heads}, got "
                f"int({expand} * {width}) = {channels}."
            )
    return num_heads, int(expand_k * width) // num_heads, int(expand_v * width) // num_heads


def key_value_heads(name: str, num_heads: int, num_kv_heads: int | None) -> int:
    """The number of heads of keys and values, `num_heads` when `None`.

    **Raises:** `ValueError`, on behalf of the class `name`, when they do not divide the heads.
    """
    heads = num_heads if num_kv_heads is None else num_kv_heads
    if num_heads % heads != 0:
        raise ValueError(f"{name}: `num_kv_heads` must divide `num_heads` = {num_heads}, got {heads}.")
    return heads


def short_convolution(
    parts: Sequence[ssmkit.Part], conv_kernel: int, use_conv_bias: bool, *, dtype: DTypeLike, key: PRNGKeyArray
) -> ssmkit.CausalConv1d:
    """One convolution over several features, with normal taps of standard deviation 0.02 and a zero bias."""
    channels = sum(part.size for part in parts)
    conv = ssmkit.CausalConv1d(channels, conv_kernel, use_bias=use_conv_bias, parts=parts, dtype=dtype, key=key)
    taps = NORMAL(key, conv.weight.shape, jnp.float32).astype(dtype)
    bias = jnp.zeros((channels,), dtype) if use_conv_bias else None
    return eqx.tree_at(lambda c: (c.weight, c.bias), conv, (taps, bias), is_leaf=lambda leaf: leaf is None)


def convolved(
    conv: ssmkit.CausalConv1d | ssmkit.Apart | None,
    features: tuple[Float[Array, "*time _"], ...],
    window: Any,
    advance: ssmkit.Advance,
    activation: Callable[[Array], Array] = lambda x: x,
) -> tuple[tuple[Float[Array, "*time _"], ...], Any]:
    """Apply a convolution and an activation to features; without a convolution, return them unchanged.

    **Arguments:**

    - `conv`: the convolution over the concatenated channels of all `features`.
    - `features`: several arrays of the same tokens.
    - `window`: the state of `conv`.
    - `advance`: as in `ssmkit.AbstractRecurrentMixer.mix`.
    - `activation`: the activation after the convolution.

    **Returns:** the features, and the new window.
    """
    if conv is None:
        return features, window
    return ssmkit.convolve_parts(conv, features, window, advance, activation)
