"""The initialisation of projections, which several models share."""

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
    """The same layer with another weight, in the dtype of the old weight."""
    return eqx.tree_at(lambda layer: layer.weight, linear, weight.astype(linear.weight.dtype))
