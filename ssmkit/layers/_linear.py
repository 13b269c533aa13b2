"""Pointwise layers: they act on the last axis and accept any number of leading axes.

Numerics, stated once: activations between layers are float32 (or wider), and so is what a projection returns, however
narrow its weight is stored (`_matrix.py`). Normalisation is float32 throughout.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from .._construction import check_dtype, check_integers, check_one_key, check_sizes, check_switches
from .._sharding import sharded_by_xla
from .._types import PRNGKeyArray, check_features, checks_itself
from ._dropout import Dropout
from ._matrix import Int8Matrix, Matrix, look_up, project


class Linear(eqx.Module):
    r"""$y = W x + b$, with $W$ stored as `(out, in)`."""

    weight: Matrix
    bias: Float[Array, " out"] | None

    @checks_itself
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Uniform initialisation in $\\pm 1/\\sqrt{in}$, as PyTorch's `Linear`; a bias starts at zero.

        **Raises:** `ValueError` naming the argument that is no size, dtype or key.
        """
        check_sizes(in_features=in_features, out_features=out_features)
        check_switches(use_bias=use_bias)
        check_dtype(dtype)
        check_one_key(key)
        bound = in_features**-0.5
        self.weight = jax.random.uniform(key, (out_features, in_features), dtype, -bound, bound)
        self.bias = jnp.zeros((out_features,), dtype) if use_bias else None

    @checks_itself
    def __call__(self, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
        """Float32 (or wider) output, whatever the weight's dtype."""
        y = project(self.weight, x)
        return y if self.bias is None else y + along_last(self.bias, y)


class BlockDiagonalLinear(eqx.Module):
    r"""$y = W x + b$ with a block-diagonal $W$: every one of `blocks` equal parts of $x$ has a matrix of its own.

    The matrices are stored as `(blocks, out, in)`, where `out` and `in` are the features of one block. Products are
    those of `ssmkit.Linear`, in float32 or wider however narrow the weight is.
    """

    weight: Float[Array, "blocks out in"] | Int8Matrix
    bias: Float[Array, " features"] | None

    @checks_itself
    def __init__(
        self,
        in_features: int,
        out_features: int,
        blocks: int,
        *,
        use_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialised as a `Linear` for each block.

        **Arguments:**

        - `in_features`, `out_features`: of all blocks together.
        - `blocks`: divides both.
        - `use_bias`: whether $b$ exists; it starts at zero.
        - `dtype`: of weight and bias.
        - `key`: for the initialisation.

        **Raises:** as `ssmkit.Linear`, and `ValueError` when the blocks do not divide the features.
        """
        check_sizes(in_features=in_features, out_features=out_features)
        check_integers(blocks=blocks)
        check_switches(use_bias=use_bias)
        check_dtype(dtype)
        check_one_key(key)
        if blocks < 1 or in_features % blocks != 0 or out_features % blocks != 0:
            raise ValueError(f"`blocks` must divide {in_features} inputs and {out_features} outputs, got {blocks}.")
        bound = (in_features // blocks) ** -0.5
        shape = (blocks, out_features // blocks, in_features // blocks)
        self.weight = jax.random.uniform(key, shape, dtype, -bound, bound)
        self.bias = jnp.zeros((out_features,), dtype) if use_bias else None

    @checks_itself
    def __call__(self, x: Float[Array, "*axes in_features"]) -> Float[Array, "*axes out_features"]:
        """Float32 (or wider) output, whatever the weight's dtype."""
        check_features(x, self.weight.shape[0] * self.weight.shape[-1])
        parts = jnp.reshape(x, (*x.shape[:-1], self.weight.shape[0], -1))
        y = jax.vmap(project, in_axes=(0, -2), out_axes=-2)(self.weight, parts)
        y = jnp.reshape(y, (*x.shape[:-1], -1))
        return y if self.bias is None else y + along_last(self.bias, y)


@jax.custom_jvp
def silu(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    r"""$x / (1 + e^{-x})$, elementwise (arXiv 1702.03118): `jax.nn.silu`, but as one division.

    XLA's CPU backend keeps the result of a division, and computes anew, in each of its uses, that of the product
    $x \, \sigma(x)$ with all that leads to $x$: for every entry of a state, if it is what a token writes.
    """
    return x / (1.0 + jnp.exp(-x))


@silu.defjvp
def _silu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The quotient rule would be infinity over infinity where exp(-x) overflows.
    (x,), (tangent,) = primals, tangents
    y, sigmoid = silu(x), jax.nn.sigmoid(x)
    return y, (sigmoid + y * (1.0 - sigmoid)) * tangent


@checks_itself
def along_last(vector: Float[Array, " width"], x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
    """A vector of the last axis, repeated along the leading axes of `x` and in its dtype: nothing promotes silently."""
    check_features(x, vector.shape[0])
    return jnp.broadcast_to(vector.astype(x.dtype), x.shape)


class Embedding(eqx.Module):
    """A row of `weight` per token id. Rows past `vocab_size` are padding: never looked up, never produced."""

    weight: Matrix
    dropout: Dropout

    @checks_itself
    def __init__(self, rows: int, width: int, *, dtype: DTypeLike = jnp.float32, key: PRNGKeyArray):
        """Normal initialisation with standard deviation 0.02.

        **Raises:** as `ssmkit.Linear`.
        """
        check_sizes(rows=rows, width=width)
        check_dtype(dtype)
        check_one_key(key)
        self.weight = 0.02 * jax.random.normal(key, (rows, width), dtype)
        self.dropout = Dropout()

    @sharded_by_xla
    def __call__(self, tokens: Int[Array, "*axes"]) -> Float[Array, "*axes width"]:
        """Rows in the weight's dtype, some features dropped as `dropout` says: with them starts the residual stream."""
        return self.dropout(look_up(self.weight, tokens))
