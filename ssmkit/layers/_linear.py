"""Pointwise layers: they act on the last axis and accept any number of leading axes.

Activations between layers are float32 (or wider). A projection returns float32 (or wider) too, even if its weight is
stored in a narrower dtype (`_matrix.py`). Normalisation is float32 throughout.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from .._construction import check_dtype, check_integers, check_one_key, check_sizes, check_switches
from .._sharding import sharded_by_xla
from .._types import PRNGKeyArray, check_features, checks_itself
from ._dropout import Dropout
from ._matrix import Int8Matrix, Matrix, look_up, project


class Part(NamedTuple):
    """One of several outputs of a fused layer: neighbouring rows of its matrix."""

    size: int
    """The number of rows."""
    units: int
    """The number of equal runs of rows that can be computed apart, such as heads or groups; divides `size`."""


class Linear(eqx.Module):
    r"""The projection $y = W x + b$, with $W$ stored as `(out, in)`.

    A fused projection gives several outputs, its `parts`, by one product: see `split`.
    """

    weight: Matrix
    bias: Float[Array, " out"] | None
    parts: tuple[Part, ...] = eqx.field(static=True)

    @checks_itself
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        parts: Sequence[Part] = (),
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise the weight uniformly in $\\pm 1/\\sqrt{in}$, as PyTorch's `Linear`; a bias starts at zero.

        `parts` are the outputs of a fused projection, in order. They make up `out_features`.

        **Raises:** `ValueError` naming the argument that is not a valid size, dtype or key.
        """
        check_sizes(in_features=in_features, out_features=out_features)
        check_switches(use_bias=use_bias)
        check_parts(parts, out_features)
        check_dtype(dtype)
        check_one_key(key)
        bound = in_features**-0.5
        self.weight = jax.random.uniform(key, (out_features, in_features), dtype, -bound, bound)
        self.bias = jnp.zeros((out_features,), dtype) if use_bias else None
        self.parts = tuple(parts)

    @checks_itself
    def __call__(self, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
        """Float32 (or wider) output, whatever the weight's dtype."""
        y = project(self.weight, x)
        return y if self.bias is None else y + along_last(self.bias, y)

    def split(self, x: Float[Array, "*axes in"]) -> tuple[Float[Array, "*axes _"], ...]:
        """The outputs of a fused projection, one for each of its `parts`."""
        return by_sizes(self(x), [part.size for part in self.parts])


class BlockDiagonalLinear(eqx.Module):
    r"""The projection $y = W x + b$ with a block-diagonal $W$: each of `blocks` equal parts of $x$ has its own matrix.

    The matrices are stored as `(blocks, out, in)`, where `out` and `in` are the features of one block. Products are
    those of `ssmkit.Linear`: in float32 or wider, even if the weight is narrower.
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
        """Initialise each block as a `Linear`.

        **Arguments:**

        - `in_features`, `out_features`: the features of all blocks together.
        - `blocks`: the number of blocks, which divides both.
        - `use_bias`: whether $b$ exists; it starts at zero.
        - `dtype`: the dtype of weight and bias.
        - `key`: the key for the initialisation.

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


class StackedLinear(eqx.Module):
    """Equal projections $y = W x$, of which each token needs some: matrices stacked as `(experts, out, in)`."""

    weight: Float[Array, "experts out in"] | Int8Matrix

    def __init__(
        self, experts: int, in_features: int, out_features: int, *, dtype: DTypeLike = jnp.float32, key: PRNGKeyArray
    ):
        """Initialise each matrix as a `Linear`."""
        bound = in_features**-0.5
        self.weight = jax.random.uniform(key, (experts, out_features, in_features), dtype, -bound, bound)


def by_sizes(x: Float[Array, "*axes features"], sizes: Sequence[int]) -> tuple[Float[Array, "*axes _"], ...]:
    """Neighbouring parts of the last axis, of these sizes, which make it up."""
    return tuple(jnp.split(x, list(itertools.accumulate(sizes[:-1])), axis=-1))


def check_parts(parts: Sequence[Part], size: int) -> None:
    """Check the parts of a fused layer.

    **Raises:** `ValueError` when they do not make up the layer, or have units that do not divide them.
    """
    if parts and (sum(part.size for part in parts) != size or any(part.size % part.units for part in parts)):
        raise ValueError(f"`parts` must make up {size} outputs, each of whole units, got {tuple(parts)}.")


@jax.custom_jvp
def silu(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    r"""The function $x / (1 + e^{-x})$, elementwise (arXiv 1702.03118): `jax.nn.silu`, written as one division.

    XLA's CPU backend stores the result of a division, but recomputes the product $x \, \sigma(x)$, and everything that
    it depends on, at each use. If a token writes the result to a state, that means once per entry of the state.
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
    """Repeat a vector of the last axis along the leading axes of `x`, in its dtype, so that nothing is promoted."""
    check_features(x, vector.shape[0])
    return jnp.broadcast_to(vector.astype(x.dtype), x.shape)


class Embedding(eqx.Module):
    """An embedding: one row of `weight` per token id. Rows past `vocab_size` are padding and are never used."""

    weight: Matrix
    dropout: Dropout

    @checks_itself
    def __init__(self, rows: int, width: int, *, dtype: DTypeLike = jnp.float32, key: PRNGKeyArray):
        """Initialise the weight with a normal distribution of standard deviation 0.02.

        **Raises:** as `ssmkit.Linear`.
        """
        check_sizes(rows=rows, width=width)
        check_dtype(dtype)
        check_one_key(key)
        self.weight = 0.02 * jax.random.normal(key, (rows, width), dtype)
        self.dropout = Dropout()

    @sharded_by_xla
    def __call__(self, tokens: Int[Array, "*axes"]) -> Float[Array, "*axes width"]:
        """Look up rows in the weight's dtype, and apply `dropout`. The rows start the residual stream."""
        return self.dropout(look_up(self.weight, tokens))
