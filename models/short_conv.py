"""A short convolution between two gates, as a mixer (LFM2, arXiv 2511.23404)."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit


class ShortConvCache(eqx.Module):
    """The cache of a short convolution. Its size does not depend on the number of tokens."""

    window: Float[Array, "*batch window channel"]


class ShortConvMixer(ssmkit.AbstractRecurrentMixer[ShortConvCache]):
    r"""$y = W_{out} (C \odot \operatorname{conv}(B \odot \tilde{x}))$ with $[B, C, \tilde{x}] = W_{in} x$.

    The convolution is causal, one per channel, and no activation follows it.
    """

    in_proj: ssmkit.Linear | ssmkit.Apart
    conv: ssmkit.CausalConv1d
    out_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        conv_kernel: int = 3,
        use_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise the layers as `ssmkit.Linear` and `ssmkit.CausalConv1d`.

        **Arguments:**

        - `width`: the width of the residual stream, and the number of channels.
        - `conv_kernel`: the number of taps of the convolution.
        - `use_bias`: whether projections and convolution have a bias.
        - `dtype`: the dtype of the projections and the convolution.
        - `key`: the key for the initialisation.
        """
        in_key, conv_key, out_key = jax.random.split(key, 3)
        parts = 3 * [ssmkit.Part(width, width)]
        self.in_proj = ssmkit.Linear(width, 3 * width, use_bias=use_bias, parts=parts, dtype=dtype, key=in_key)
        self.conv = ssmkit.CausalConv1d(width, conv_kernel, use_bias=use_bias, dtype=dtype, key=conv_key)
        self.out_proj = ssmkit.Linear(width, width, use_bias=use_bias, dtype=dtype, key=out_key)

    def init_cache(self) -> ShortConvCache:
        """An empty window, float32."""
        return ShortConvCache(window=self.conv.init_state())

    def mix(
        self, x: Float[Array, "*time width"], cache: ShortConvCache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], ShortConvCache]:
        """The equation of the class, for many tokens or for one."""
        B, C, x = self.in_proj.split(x)
        y, window = advance(self.conv, B * x, cache.window)
        return self.out_proj(C * y), ShortConvCache(window=window)
