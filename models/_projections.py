"""What several models share: how projections are initialised, and how channels are split into heads."""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit


NORMAL = jax.nn.initializers.normal(0.02)  # as in flash-linear-attention


def projection(
    in_features: int,
    out_features: int,
    initializer: Callable[..., Array] = NORMAL,
    *,
    use_bias: bool = False,
    dtype: DTypeLike = jnp.float32,
    key: PRNGKeyArray,
) -> ssmkit.Linear:
    """A linear layer whose weight, of shape `(out_features, in_features)`, is drawn by `initializer`.

    **Arguments:**

    - `in_features`, `out_features`, `use_bias`, `dtype`, `key`: as `ssmkit.Linear`.
    - `initializer`: one of `jax.nn.initializers`; it draws in float32.
    """
    linear = ssmkit.Linear(in_features, out_features, use_bias=use_bias, dtype=dtype, key=key)
    return with_weight(linear, initializer(key, linear.weight.shape, jnp.float32))


Layer = TypeVar("Layer", ssmkit.Linear, ssmkit.BlockDiagonalLinear)


def with_weight(linear: Layer, weight: Float[Array, "*blocks out in"]) -> Layer:
    """The same layer with another weight, in the dtype of the old one."""
    return eqx.tree_at(lambda layer: layer.weight, linear, weight.astype(linear.weight.dtype))


def state_shape(name: str, width: int, num_heads: int, expand_k: float, expand_v: float) -> tuple[int, int, int]:
    """Heads, and their key and value channels, out of `expand_k * width` and `expand_v * width` channels in total.

    **Raises:** `ValueError`, on behalf of the class `name`, when the heads do not divide them.
    """
    if num_heads < 1:
        raise ValueError(f"{name}: `num_heads` must be at least 1, got {num_heads}.")
    for argument, expand in (("expand_k", expand_k), ("expand_v", expand_v)):
        channels = int(expand * width)
        if channels < 1 or channels % num_heads != 0:
            raise ValueError(
                f"{name}: int(`{argument}` * `width`) must be a positive multiple of `num_heads` = {num_heads}, got "
                f"int({expand} * {width}) = {channels}."
            )
    return num_heads, int(expand_k * width) // num_heads, int(expand_v * width) // num_heads
