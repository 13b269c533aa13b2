"""RetNet: multi-scale retention (arXiv 2307.08621)."""

import math
from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._linear_attention import convolved, key_value_heads, short_convolution, state_shape
from ._projections import projection


class RetNetInputs(eqx.Module):
    """The inputs of the recurrence for one token; many tokens have a leading `time` axis. `q` and `k` are rotated."""

    q: Float[Array, "*time heads key"]
    k: Float[Array, "*time heads key"]
    v: Float[Array, "*time heads value"]


class RetNetRecurrence(ssmkit.DiagonalChunkedRecurrence[RetNetInputs]):
    r"""A recurrence with one constant decay per head (arXiv 2307.08621, equations 6 and 8).

    $$S_t = \gamma_h S_{t-1} + k_t v_t^\top, \qquad o_t = S_t^\top q_t / \sqrt{d_k}, \qquad \gamma_h = 1 - 2^{-5-h}$$

    **Arguments:**

    - `state_shape`: `(heads, key, value)`.
    - `chunk_size`: as `ssmkit.DiagonalChunkedRecurrence`.
    """

    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def coefficients(self, inputs: RetNetInputs) -> ssmkit.Coefficients:
        """The coefficients of one token, by the equations of the class."""
        heads, key, _ = self.state_shape
        log_decay = jnp.asarray(np.log1p(-(2.0 ** (-5.0 - np.arange(heads)))), jnp.float32)
        return ssmkit.Coefficients(
            log_decay=log_decay[:, None], write=inputs.k, value=inputs.v, read=inputs.q * key**-0.5
        )


class RetNetCache(eqx.Module):
    """The cache of RetNet: the position, as the phase of every rotated pair, and the state of the recurrence.

    With short convolutions it also holds the window of the last tokens' queries, keys and values.
    """

    phase: Float[Array, "*batch 2 pair"]
    state: Float[Array, "*batch heads key value"]
    window: Float[Array, "*batch window channel"] | tuple[Float[Array, "*batch window _"], ...] | None = None


class RetNetMixer(ssmkit.AbstractRecurrentMixer[RetNetCache]):
    r"""Gated multi-scale retention (arXiv 2307.08621, equation 8), in the form of flash-linear-attention.

    With $q_t = R_t W_q x_t$, $k_t = R_t W_k x_t$ and $v_t = W_v x_t$,

    $$y = W_o (\operatorname{RMSNorm}_{head}(\operatorname{Retention}(q, k, v)) \odot \operatorname{silu}(W_g x)).$$

    $R_t$ rotates feature $j$ with feature $j + d_k / 2$ by $t \theta_j$, where $\theta_j = 10000^{-2j / d_k}$ and the
    first token has $t = 0$. The authors' torchscale rotates neighbouring features by other angles, so its weights do
    not fit. All heads share the norm's weight. With `use_short_conv`, $q, k, v$ pass a causal convolution and a silu
    before $R_t$.
    """

    q_proj: ssmkit.Linear
    k_proj: ssmkit.Linear
    v_proj: ssmkit.Linear
    conv: ssmkit.CausalConv1d | ssmkit.Apart | None
    g_proj: ssmkit.Linear | None
    phase: ssmkit.RunningPhase
    recurrence: RetNetRecurrence
    norm: ssmkit.RMSNorm
    o_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    feature_map: Callable[[Array], Array] | None = eqx.field(static=True)

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        feature_map: str | Callable[[Array], Array] | None = None,
        use_short_conv: bool = False,
        conv_kernel: int = 4,
        use_conv_bias: bool = False,
        use_output_gate: bool = True,
        norm_eps: float = 1e-6,
        chunk_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise weights normally with standard deviation 0.02, as flash-linear-attention.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `num_heads`, `expand_k`, `expand_v`: `expand_k * width` key and `expand_v * width` value channels, over the
            heads. Each head has an even number of key channels.
        - `num_kv_heads`: the number of heads of keys and values, a divisor of `num_heads`; `num_heads` when `None`.
            Every query head has its own decay, and therefore its own state.
        - `feature_map`: as `GLAMixer`, before the rotation.
        - `use_short_conv`, `conv_kernel`, `use_conv_bias`: whether a causal convolution acts on queries, keys and
            values, its number of taps, and whether it has a bias.
        - `use_output_gate`: whether the gate $W_g$ exists.
        - `norm_eps`: the epsilon of the heads' norm.
        - `chunk_size`: the chunk size of the recurrence.
        - `dtype`: the dtype of the projections and the convolution.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` when the heads do not divide the channels, or key channels cannot be paired.
        """
        heads, key_dim, value_dim = state_shape("RetNetMixer", width, num_heads, expand_k, expand_v)
        if key_dim % 2 != 0:
            raise ValueError(
                f"RetNetMixer: int(`expand_k` * `width`) // `num_heads` must be even, as features turn in pairs, got "
                f"{key_dim}."
            )
        kv_heads, keys = key_value_heads("RetNetMixer", heads, num_kv_heads), jax.random.split(key, 5)
        queries, keyed, valued = heads * key_dim, kv_heads * key_dim, kv_heads * value_dim
        self.q_proj = projection(width, queries, dtype=dtype, key=keys[0])
        self.k_proj = projection(width, keyed, dtype=dtype, key=keys[1])
        self.v_proj = projection(width, valued, dtype=dtype, key=keys[2])
        conv_key = jax.random.fold_in(key, 1)
        parts = [ssmkit.Part(queries, heads), ssmkit.Part(keyed, kv_heads), ssmkit.Part(valued, kv_heads)]
        self.conv = (
            short_convolution(parts, conv_kernel, use_conv_bias, dtype=dtype, key=conv_key) if use_short_conv else None
        )
        self.g_proj = projection(width, heads * value_dim, dtype=dtype, key=keys[3]) if use_output_gate else None
        self.phase = ssmkit.RunningPhase((key_dim // 2,))
        self.recurrence = RetNetRecurrence((heads, key_dim, value_dim), chunk_size=chunk_size)
        self.norm = ssmkit.RMSNorm(value_dim, eps=norm_eps)
        self.o_proj = projection(heads * value_dim, width, dtype=dtype, key=keys[4])
        self.feature_map = None if feature_map is None else ssmkit.activation_of(feature_map, argument="feature_map")

    def init_cache(self) -> RetNetCache:
        """Position 0, a zero state and an empty window, float32."""
        window = None if self.conv is None else self.conv.init_state()
        return RetNetCache(phase=self.phase.init_state(), state=self.recurrence.init_state(), window=window)

    def mix(
        self, x: Float[Array, "*time width"], cache: RetNetCache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], RetNetCache]:
        """The equations of the class, for many tokens or for one."""
        (heads, key, value), axes = self.recurrence.state_shape, x.shape[:-1]
        qkv, window = convolved(
            self.conv, (self.q_proj(x), self.k_proj(x), self.v_proj(x)), cache.window, advance, ssmkit.silu
        )
        q, k, v = (jnp.reshape(a, (*axes, -1, size)) for a, size in zip(qkv, (key, key, value), strict=True))
        if self.feature_map is not None:
            q, k = self.feature_map(q), self.feature_map(k)
        theta = 10000.0 ** (-2.0 * np.arange(key // 2) / key)
        turns = jnp.broadcast_to(jnp.asarray(theta / (2 * math.pi), jnp.float32), (*axes, key // 2))
        after, phase = advance(self.phase, turns, cache.phase)
        angle = 2 * math.pi * (after - turns)[..., None, :]  # the first token does not turn
        shared = lambda array: jnp.repeat(array, heads // array.shape[-2], axis=-2)
        inputs = RetNetInputs(q=_turn(q, angle), k=shared(_turn(k, angle)), v=shared(v))
        y, state = advance(self.recurrence, inputs, cache.state)
        y = jnp.reshape(self.norm(y), (*axes, -1))
        if self.g_proj is not None:
            y = y * ssmkit.silu(self.g_proj(x))
        return self.o_proj(y), RetNetCache(phase=phase, state=state, window=window)


def _turn(x: Float[Array, "*time heads key"], angle: Float[Array, "*time 1 pair"]) -> Float[Array, "*time heads key"]:
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
