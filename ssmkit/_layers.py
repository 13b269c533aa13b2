"""Pointwise layers: they act on the last axis and accept any number of leading axes.

Numerics, stated once: activations between layers are float32 (or wider); the operands of a projection are cast to its
weight's dtype on entry, and the product is accumulated and returned in float32. Normalisation is float32 throughout.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from ._types import PRNGKeyArray, at_least_float32


class Linear(eqx.Module):
    r"""$y = W x + b$, with $W$ stored as `(out, in)`."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Uniform initialisation in $\\pm 1/\\sqrt{in}$, as PyTorch's `Linear`; a bias starts at zero."""
        bound = in_features**-0.5
        self.weight = jax.random.uniform(key, (out_features, in_features), dtype, -bound, bound)
        self.bias = jnp.zeros((out_features,), dtype) if use_bias else None

    def __call__(self, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
        """Float32 (or wider) output, whatever the weight's dtype."""
        y = project(self.weight, x)
        return y if self.bias is None else y + along_last(self.bias, y)


def along_last(vector: Float[Array, " width"], x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
    """A vector of the last axis, repeated along the leading axes of `x` and in its dtype: nothing promotes silently."""
    return jnp.broadcast_to(vector.astype(x.dtype), x.shape)


def project(weight: Float[Array, "out in"], x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
    """The cast point: operands in the weight's dtype, result in float32 or wider."""
    return jnp.einsum(
        "...i,oi->...o", x.astype(weight.dtype), weight, preferred_element_type=at_least_float32(weight.dtype)
    )


class Embedding(eqx.Module):
    """A row of `weight` per token id. Rows past `vocab_size` are padding: never looked up, never produced."""

    weight: Float[Array, "padded_vocab width"]

    def __init__(self, rows: int, width: int, *, dtype: DTypeLike = jnp.float32, key: PRNGKeyArray):
        """Normal initialisation with standard deviation 0.02."""
        self.weight = 0.02 * jax.random.normal(key, (rows, width), dtype)

    def __call__(self, tokens: Int[Array, "*axes"]) -> Float[Array, "*axes width"]:
        """Rows in the weight's dtype: with it starts the residual stream."""
        return self.weight[tokens]
