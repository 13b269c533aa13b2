"""Griffin's recurrent block and its RG-LRU (arXiv 2402.19427)."""

import math
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._projections import projection, with_weight


_FAN_IN = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)


class RGLRUInputs(eqx.Module):
    """The inputs of the recurrence for one token, with gates before their sigmoids; many have a `time` axis.

    `seen` is 0 at the first token of a sequence and 1 at others; with `None`, no token is treated as the first.
    """

    x: Float[Array, "*time heads"]
    input_gate: Float[Array, "*time heads"]
    recurrence_gate: Float[Array, "*time heads"]
    seen: Float[Array, "*time"] | None = None


class RGLRURecurrence(ssmkit.DiagonalChunkedRecurrence[RGLRUInputs]):
    r"""$h_t = a_t \odot h_{t-1} + \sqrt{1 - a_t^2} \odot (\sigma(i_t) \odot x_t)$, the output (equations 1 to 4).

    Here $\log a_t = -8 \, \sigma(r_t) \odot \operatorname{softplus}(\Lambda)$. Every channel is a head with a state of
    one number. At the first token of a sequence, recurrentgemma's code uses $h = \sigma(i) \odot x$, without the square
    root, unlike the paper. This class does the same if `seen` marks the first token.
    """

    Lambda: Float[Array, " heads"]
    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(self, channels: int, *, key: PRNGKeyArray):
        r"""Initialise as the authors: $e^{-\operatorname{softplus}(\Lambda)}$ in [0.9, 0.999], uniform square."""
        squared = jax.random.uniform(key, (channels,), jnp.float32, 0.9**2, 0.999**2)
        self.Lambda = jnp.log(jnp.expm1(-0.5 * jnp.log(squared)))
        self.state_shape = (channels, 1, 1)

    def coefficients(self, inputs: RGLRUInputs) -> ssmkit.Coefficients:
        """The coefficients of one token, by the equations of the class.

        A lower bound far below rounding keeps the square root's derivative finite at $a = 1$.

        **Arguments:**

        - `inputs`: arrays of shape `(heads,)`, and the scalar `seen`.
        """
        log_a = -8.0 * jax.nn.sigmoid(inputs.recurrence_gate) * jax.nn.softplus(self.Lambda)
        scale = jnp.sqrt(jnp.maximum(-jnp.expm1(2.0 * log_a), 1e-36))
        if inputs.seen is not None:
            scale = jnp.where(inputs.seen > 0.0, scale, jnp.ones_like(scale))
        value = scale * jax.nn.sigmoid(inputs.input_gate) * inputs.x
        one = jnp.ones((1, 1), jnp.float32)
        return ssmkit.Coefficients(log_decay=log_a[:, None], write=one, value=value[:, None], read=one)


class RGLRUCache(eqx.Module):
    """The cache of Griffin's recurrent block. Its size does not depend on the number of tokens.

    `seen` is 0 before the first token and 1 after it. It is `None` if the first token is not treated differently.
    """

    window: Float[Array, "*batch window channel"]
    state: Float[Array, "*batch channel 1 1"]
    seen: Float[Array, "*batch"] | None = None


class RGLRUMixer(ssmkit.AbstractRecurrentMixer[RGLRUCache]):
    r"""Griffin's recurrent block (section 2.3): a convolution and an RG-LRU beside a gate.

    With $x = \operatorname{conv}(W_x u + b_x)$ and block-diagonal maps of $x$ for both gates,

    $$y = W_{out} (\operatorname{RGLRU}(x) \odot \operatorname{gelu}(W_y u + b_y)) + b_{out}.$$
    """

    linear_x: ssmkit.Linear
    linear_y: ssmkit.Linear
    conv: ssmkit.CausalConv1d
    input_gate: ssmkit.BlockDiagonalLinear
    recurrence_gate: ssmkit.BlockDiagonalLinear
    recurrence: RGLRURecurrence
    seen: ssmkit.Shift | None
    linear_out: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        intermediate_size: int | None = None,
        num_heads: int = 10,
        conv_kernel: int = 4,
        scale_first_token: bool = True,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        r"""Initialise as the authors' code, except `linear_out`, which a model of $L$ layers scales by $\sqrt{2/L}$.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `intermediate_size`: channels of the recurrence, the authors' `lru_width`; `None` means `width`.
        - `num_heads`: blocks of the gates' maps, a divisor of `intermediate_size`. The published
            configurations have one key for this and for the heads of the attention layers.
        - `conv_kernel`: taps of the causal convolution.
        - `scale_first_token`: whether $\sqrt{1 - a^2}$ scales the first token of a sequence too, as in the paper. It is
            false in recurrentgemma's code, and must be false for its weights.
        - `dtype`: the dtype of the projections and the convolution; the rest stays float32.
        - `key`: the key for the initialisation.
        """
        channels = width if intermediate_size is None else intermediate_size
        if channels % num_heads != 0:
            raise ValueError(
                f"`num_heads` must divide the {channels} channels of `intermediate_size`, got {num_heads}."
            )
        x_key, y_key, conv_key, input_key, recurrence_key, lambda_key, out_key = jax.random.split(key, 7)
        self.linear_x = projection(width, channels, _FAN_IN, use_bias=True, dtype=dtype, key=x_key)
        self.linear_y = projection(width, channels, _FAN_IN, use_bias=True, dtype=dtype, key=y_key)
        conv = ssmkit.CausalConv1d(channels, conv_kernel, dtype=dtype, key=conv_key)
        taps = jax.random.normal(conv_key, conv.weight.shape, dtype) * math.sqrt(0.01 / conv_kernel)
        self.conv = eqx.tree_at(lambda c: (c.weight, c.bias), conv, (taps, jnp.zeros((channels,), dtype)))
        self.input_gate = _gate(channels, num_heads, dtype, input_key)
        self.recurrence_gate = _gate(channels, num_heads, dtype, recurrence_key)
        self.recurrence = RGLRURecurrence(channels, key=lambda_key)
        self.seen = None if scale_first_token else ssmkit.Shift(())
        self.linear_out = projection(channels, width, _FAN_IN, use_bias=True, dtype=dtype, key=out_key)

    def init_cache(self) -> RGLRUCache:
        """An empty window and a zero state, float32."""
        seen = None if self.seen is None else self.seen.init_state()
        return RGLRUCache(window=self.conv.init_state(), state=self.recurrence.init_state(), seen=seen)

    def mix(
        self, x: Float[Array, "*time width"], cache: RGLRUCache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], RGLRUCache]:
        """The equations of the class, for many tokens or for one."""
        u, window = advance(self.conv, self.linear_x(x), cache.window)
        before = last = None
        if self.seen is not None:  # each token is told whether one came before it
            before, last = advance(self.seen, jnp.ones(x.shape[:-1], jnp.float32), cache.seen)
        gates = self.input_gate(u), self.recurrence_gate(u)
        inputs = RGLRUInputs(x=u, input_gate=gates[0], recurrence_gate=gates[1], seen=before)
        h, state = advance(self.recurrence, inputs, cache.state)
        y = self.linear_out(h[..., 0] * jax.nn.gelu(self.linear_y(x)))
        return y, RGLRUCache(window=window, state=state, seen=last)


def _gate(channels: int, blocks: int, dtype: DTypeLike, key: PRNGKeyArray) -> ssmkit.BlockDiagonalLinear:
    """A map of every block of channels to itself: normal weights with variance 1 over a block's width."""
    layer = ssmkit.BlockDiagonalLinear(channels, channels, blocks, use_bias=True, dtype=dtype, key=key)
    return with_weight(layer, jax.random.normal(key, layer.weight.shape, jnp.float32) / math.sqrt(channels // blocks))
