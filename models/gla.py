"""Gated linear attention (arXiv 2312.06635)."""

from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._linear_attention import convolved, key_value_heads, short_convolution, state_shape
from ._projections import projection


class GLAInputs(eqx.Module):
    """The inputs of the recurrence for one token; many tokens have a leading `time` axis.

    `gate` is the value before its sigmoid. A head may have several queries: `q` is then `(heads, queries, key)`.
    """

    q: Float[Array, "... key"]
    k: Float[Array, "*time heads key"]
    v: Float[Array, "*time heads value"]
    gate: Float[Array, "*time heads key"]


class GLARecurrence(ssmkit.DiagonalChunkedRecurrence[GLAInputs]):
    r"""A recurrence with one decay per key channel, a function of the input (arXiv 2312.06635, sections 4.1 and 4.4).

    $$S_t = \operatorname{diag}(\alpha_t) S_{t-1} + k_t v_t^\top, \qquad o_t = S_t^\top q_t / \sqrt{d_k}, \qquad
    \alpha_t = \sigma(g_t)^{1/\tau}$$

    **Arguments:**

    - `state_shape`: `(heads, key, value)`.
    - `gate_logit_normalizer`: $\tau$.
    - `clamp_min`: the least value of $\log \alpha$; `None` for no bound.
    - `chunk_size`: as `ssmkit.DiagonalChunkedRecurrence`.
    """

    state_shape: tuple[int, int, int] = eqx.field(static=True)
    gate_logit_normalizer: float = eqx.field(static=True, default=16.0)
    clamp_min: float | None = eqx.field(static=True, default=None)

    def coefficients(self, inputs: GLAInputs) -> ssmkit.Coefficients:
        """The coefficients of one token, by the equations of the class."""
        log_decay = jax.nn.log_sigmoid(inputs.gate.astype(jnp.float32)) / self.gate_logit_normalizer
        return ssmkit.Coefficients(
            log_decay=log_decay if self.clamp_min is None else jnp.maximum(log_decay, self.clamp_min),
            write=inputs.k,
            value=inputs.v,
            read=inputs.q * self.state_shape[1] ** -0.5,
        )


class GLACache(eqx.Module):
    """The recurrence's state and, with short convolutions, the window of the last tokens' queries, keys and values."""

    state: Float[Array, "*batch heads key value"]
    window: Float[Array, "*batch window channel"] | tuple[Float[Array, "*batch window _"], ...] | None = None


class GLAMixer(ssmkit.AbstractRecurrentMixer[GLACache]):
    r"""Gated linear attention with an output gate (arXiv 2312.06635, section 4.4).

    With $q, k, v = W_q x, W_k x, W_v x$ and $g = W_2 W_1 x + b$ of low rank,

    $$y = W_o (\operatorname{RMSNorm}_{head}(\operatorname{GLA}(q, k, v, g)) \odot \operatorname{silu}(W_g x)).$$

    The norm comes before the gate, and all heads share its weight. The options are those of flash-linear-attention.
    With `use_short_conv`, $q, k, v$ first pass a causal convolution and a silu. With `num_kv_heads`, several heads
    share keys, values and gates. They then also share a state, which each head reads with its own query.
    """

    q_proj: ssmkit.Linear
    k_proj: ssmkit.Linear
    v_proj: ssmkit.Linear
    conv: ssmkit.CausalConv1d | ssmkit.Apart | None
    gk_down: Annotated[ssmkit.Linear, ssmkit.ArrayKind.SHARED]
    gk_up: ssmkit.Linear
    g_proj: ssmkit.Linear | None
    recurrence: GLARecurrence
    norm: ssmkit.RMSNorm
    o_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    num_heads: int = eqx.field(static=True)
    feature_map: Callable[[Array], Array] | None = eqx.field(static=True)

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        feature_map: str | Callable[[Array], Array] | None = None,
        use_short_conv: bool = False,
        conv_kernel: int = 4,
        use_conv_bias: bool = False,
        use_output_gate: bool = True,
        gate_logit_normalizer: float = 16.0,
        gate_low_rank_dim: int = 16,
        clamp_min: float | None = None,
        norm_eps: float = 1e-6,
        chunk_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise weights normally with standard deviation 0.02, and biases to zero, as flash-linear-attention.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `num_heads`, `expand_k`, `expand_v`: `expand_k * width` key and `expand_v * width` value channels, over the
            heads.
        - `num_kv_heads`: the number of heads of keys, values and forget gates, a divisor of `num_heads`; `num_heads`
            when `None`.
        - `feature_map`: as `ssmkit.activation_of`, such as "relu"; it acts on queries and keys, after the convolution.
            `None` for no function.
        - `use_short_conv`, `conv_kernel`, `use_conv_bias`: whether a causal convolution acts on queries, keys and
            values, its number of taps, and whether it has a bias.
        - `use_output_gate`: whether the gate $W_g$ exists.
        - `gate_logit_normalizer`, `clamp_min`: as `GLARecurrence`.
        - `gate_low_rank_dim`: the rank of the forget gate's projection.
        - `norm_eps`: the epsilon of the heads' norm.
        - `chunk_size`: the chunk size of the recurrence.
        - `dtype`: the dtype of the projections and the convolution.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` when the heads do not divide the channels, or a size is not positive.
        """
        heads, key_dim, value_dim = state_shape("GLAMixer", width, num_heads, expand_k, expand_v)
        kv_heads = key_value_heads("GLAMixer", heads, num_kv_heads)
        if gate_logit_normalizer <= 0:
            raise ValueError(f"GLAMixer: `gate_logit_normalizer` must be above 0, got {gate_logit_normalizer}.")
        keys = jax.random.split(key, 7)
        queries, keyed, valued = heads * key_dim, kv_heads * key_dim, kv_heads * value_dim
        self.q_proj = projection(width, queries, dtype=dtype, key=keys[0])
        self.k_proj = projection(width, keyed, dtype=dtype, key=keys[1])
        self.v_proj = projection(width, valued, dtype=dtype, key=keys[2])
        conv_key = jax.random.fold_in(key, 1)
        parts = [ssmkit.Part(queries, heads), ssmkit.Part(keyed, kv_heads), ssmkit.Part(valued, kv_heads)]
        self.conv = (
            short_convolution(parts, conv_kernel, use_conv_bias, dtype=dtype, key=conv_key) if use_short_conv else None
        )
        self.gk_down = projection(width, gate_low_rank_dim, dtype=dtype, key=keys[3])
        self.gk_up = projection(gate_low_rank_dim, keyed, use_bias=True, dtype=dtype, key=keys[4])
        self.g_proj = projection(width, heads * value_dim, dtype=dtype, key=keys[5]) if use_output_gate else None
        self.recurrence = GLARecurrence(
            (kv_heads, key_dim, value_dim), gate_logit_normalizer, clamp_min, chunk_size=chunk_size
        )
        self.norm = ssmkit.RMSNorm(value_dim, eps=norm_eps)
        self.o_proj = projection(heads * value_dim, width, dtype=dtype, key=keys[6])
        self.num_heads = num_heads
        self.feature_map = None if feature_map is None else ssmkit.activation_of(feature_map, argument="feature_map")

    def init_cache(self) -> GLACache:
        """A zero state and an empty window, float32."""
        window = None if self.conv is None else self.conv.init_state()
        return GLACache(state=self.recurrence.init_state(), window=window)

    def mix(
        self, x: Float[Array, "*time width"], cache: GLACache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], GLACache]:
        """The equations of the class, for many tokens or for one."""
        (heads, key, _), axes = self.recurrence.state_shape, x.shape[:-1]
        split = lambda channels: jnp.reshape(channels, (*axes, heads, -1))
        qkv, window = convolved(
            self.conv, (self.q_proj(x), self.k_proj(x), self.v_proj(x)), cache.window, advance, ssmkit.silu
        )
        q, k, v = map(split, qkv)
        if self.feature_map is not None:
            q, k = self.feature_map(q), self.feature_map(k)
        if heads != self.num_heads:  # several queries for every state
            q = jnp.reshape(q, (*axes, heads, -1, key))
        inputs = GLAInputs(q=q, k=k, v=v, gate=split(self.gk_up(self.gk_down(x))))
        y, state = advance(self.recurrence, inputs, cache.state)
        y = jnp.reshape(self.norm(y), (*axes, -1))
        if self.g_proj is not None:
            y = y * ssmkit.silu(self.g_proj(x))
        return self.o_proj(y), GLACache(state=state, window=window)
