"""Normalisation over the last axis, or groups of it, in float32 or wider."""

from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from .._construction import check_dtype, check_integers, check_sizes
from .._types import at_least_float32, check_features, checks_itself, real, shown
from ._linear import along_last, silu


class RMSNorm(eqx.Module):
    r"""The norm $y = w \odot x / \sqrt{\operatorname{mean}(x^2) + \epsilon}$ over the last axis (arXiv 1910.07467)."""

    weight: Float[Array, " width"]
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    @checks_itself
    def __init__(self, width: int, *, groups: int = 1, eps: float = 1e-5, dtype: DTypeLike = jnp.float32):
        """Initialise the weight to one, in float32 or wider.

        **Arguments:**

        - `width`: the size of the last axis.
        - `groups`: must divide `width`; the mean is taken over `width // groups` neighbours.
        - `eps`: $\\epsilon$.
        - `dtype`: the dtype of the weight.

        **Raises:** `ValueError` naming the argument that does not fit.
        """
        self.weight = jnp.ones((_grouped("width", width, groups, eps, dtype),), at_least_float32(dtype))
        self.groups = groups
        self.eps = float(eps)

    @checks_itself
    def __call__(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
        """Normalised `x`, float32 or wider."""
        check_features(x, self.weight.shape[0])
        x = x.astype(self.weight.dtype)
        return along_last(self.weight, x) * rms_normalise(x, groups=self.groups, eps=self.eps)


class ZeroCentredRMSNorm(eqx.Module):
    r"""The norm $y = (1 + w) \odot x / \sqrt{\operatorname{mean}(x^2) + \epsilon}$ over the last axis.

    Weight decay pulls it towards the norm without a weight. Models whose files hold $w$, and not $1 + w$, need it.
    """

    weight: Float[Array, " width"]
    eps: float = eqx.field(static=True)

    @checks_itself
    def __init__(self, width: int, *, eps: float = 1e-5, dtype: DTypeLike = jnp.float32):
        """Initialise the weight to zero, in float32 or wider.

        **Arguments:** as `ssmkit.RMSNorm`, without `groups`.
        """
        self.weight = jnp.zeros((_grouped("width", width, 1, eps, dtype),), at_least_float32(dtype))
        self.eps = float(eps)

    @checks_itself
    def __call__(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
        """Normalised `x`, float32 or wider."""
        check_features(x, self.weight.shape[0])
        x = x.astype(self.weight.dtype)
        return along_last(1.0 + self.weight, x) * rms_normalise(x, eps=self.eps)


class GatedRMSNorm(eqx.Module):
    r"""RMS normalisation of $x \odot \operatorname{silu}(z)$ within groups of channels (arXiv 2405.21060, section 7).

    The gate is applied before the norm: `norm_before_gate=False` in the official implementation.
    """

    weight: Float[Array, " channel"]
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    @checks_itself
    def __init__(self, channels: int, *, groups: int = 1, eps: float = 1e-5, dtype: DTypeLike = jnp.float32):
        """As `ssmkit.RMSNorm`."""
        self.weight = jnp.ones((_grouped("channels", channels, groups, eps, dtype),), at_least_float32(dtype))
        self.groups = groups
        self.eps = float(eps)

    @checks_itself
    def __call__(
        self, x: Float[Array, "*axes channel"], gate: Float[Array, "*axes channel"]
    ) -> Float[Array, "*axes channel"]:
        """Normalised and gated `x`, float32 or wider."""
        check_features(x, self.weight.shape[0])
        check_features(gate, self.weight.shape[0])
        dtype = self.weight.dtype
        x = x.astype(dtype) * silu(gate.astype(dtype))
        return along_last(self.weight, x) * rms_normalise(x, groups=self.groups, eps=self.eps)


class LayerNorm(eqx.Module):
    r"""$y = w \odot (x - \operatorname{mean}(x)) / \sqrt{\operatorname{var}(x) + \epsilon} + b$ (arXiv 1607.06450).

    With as many `groups` as heads, RWKV calls it a group norm, and xLSTM calls it a multi-head layer norm.
    """

    weight: Float[Array, " width"]
    bias: Float[Array, " width"] | None
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    @checks_itself
    def __init__(
        self,
        width: int,
        *,
        groups: int = 1,
        use_bias: bool = True,
        eps: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
    ):
        """Initialise the weight to one and the bias to zero, in float32 or wider.

        **Arguments:** as `ssmkit.RMSNorm`, and `use_bias`: whether $b$ exists.
        """
        self.weight = jnp.ones((_grouped("width", width, groups, eps, dtype),), at_least_float32(dtype))
        self.bias = jnp.zeros((width,), at_least_float32(dtype)) if use_bias else None
        self.groups = groups
        self.eps = float(eps)

    @checks_itself
    def __call__(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
        """Normalised `x`, float32 or wider."""
        check_features(x, self.weight.shape[0])
        x = x.astype(self.weight.dtype)
        grouped = jnp.reshape(x, (*x.shape[:-1], self.groups, -1))
        centred = jnp.reshape(grouped - jnp.mean(grouped, axis=-1, keepdims=True), x.shape)
        y = along_last(self.weight, x) * rms_normalise(centred, groups=self.groups, eps=self.eps)
        return y if self.bias is None else y + along_last(self.bias, y)


Norm: TypeAlias = RMSNorm | ZeroCentredRMSNorm | LayerNorm
"""The norms of a residual stream."""


def rms_normalise(x: Float[Array, "*axes width"], *, groups: int = 1, eps: float) -> Float[Array, "*axes width"]:
    r"""$x / \sqrt{\operatorname{mean}(x^2) + \epsilon}$ within each group of neighbours, without a weight."""
    grouped = jnp.reshape(x, (*x.shape[:-1], groups, -1))
    grouped = grouped * jax.lax.rsqrt(jnp.mean(jnp.square(grouped), axis=-1, keepdims=True) + eps)
    return jnp.reshape(grouped, x.shape)


def _grouped(name: str, width: Any, groups: Any, eps: Any, dtype: Any) -> int:
    """Check the arguments of a norm, and return its channels.

    **Raises:** `ValueError` naming the argument that does not fit.
    """
    check_sizes(**{name: width})
    check_integers(groups=groups)
    check_dtype(dtype)
    if groups < 1 or width % groups != 0:
        raise ValueError(f"`groups` must divide the {width} channels, got {groups}.")
    if (number := real(eps)) is None or not number >= 0:
        raise ValueError(f"`eps` must be a number, at least 0, got {shown(eps)}.")
    return width
