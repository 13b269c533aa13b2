"""RetNet: multi-scale retention (arXiv 2307.08621)."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._projections import projection, state_shape


class RetNetInputs(eqx.Module):
    """What the recurrence sees of one token; a leading `time` axis for many. `q` and `k` are rotated already."""

    q: Float[Array, "*time heads key"]
    k: Float[Array, "*time heads key"]
    v: Float[Array, "*time heads value"]


class RetNetRecurrence(ssmkit.DiagonalChunkedRecurrence[RetNetInputs]):
    r"""One constant decay per head (arXiv 2307.08621, equations 6 and 8).

    $$S_t = \gamma_h S_{t-1} + k_t v_t^\top, \qquad o_t = S_t^\top q_t / \sqrt{d_k}, \qquad \gamma_h = 1 - 2^{-5-h}$$

    **Arguments:**

    - `state_shape`: `(heads, key, value)`.
    - `chunk_size`: as `ssmkit.DiagonalChunkedRecurrence`.
    """

    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def coefficients(self, inputs: RetNetInputs) -> ssmkit.Coefficients:
        """The equations above."""
        heads, key, _ = self.state_shape
        log_decay = jnp.asarray(np.log1p(-(2.0 ** (-5.0 - np.arange(heads)))), jnp.float32)
        return ssmkit.Coefficients(
            log_decay=log_decay[:, None], write=inputs.k, value=inputs.v, read=inputs.q * key**-0.5
        )


class RetNetCache(eqx.Module):
    """The position, as the phase of every rotated pair, and the recurrence's state."""

    phase: Float[Array, "*batch pair"]
    state: Float[Array, "*batch heads key value"]


class RetNetMixer(ssmkit.AbstractRecurrentMixer[RetNetCache]):
    r"""Gated multi-scale retention (arXiv 2307.08621, equation 8), as flash-linear-attention has it.

    With $q_t = R_t W_q x_t$, $k_t = R_t W_k x_t$ and $v_t = W_v x_t$,

    $$y = W_o (\operatorname{RMSNorm}_{head}(\operatorname{Retention}(q, k, v)) \odot \operatorname{silu}(W_g x)).$$

    $R_t$ turns feature $j$ with feature $j + d_k / 2$ by $t \theta_j$, where $\theta_j = 10000^{-2j / d_k}$ and the
    first token has $t = 0$. The authors' torchscale turns neighbours, by other angles: weights do not carry over. All
    heads share the norm's weight.
    """

    q_proj: ssmkit.Linear
    k_proj: ssmkit.Linear
    v_proj: ssmkit.Linear
    g_proj: ssmkit.Linear
    phase: ssmkit.RunningPhase
    recurrence: RetNetRecurrence
    norm: ssmkit.RMSNorm
    o_proj: ssmkit.Linear

    def __init__(
        self,
        width: int,
        *,
        num_heads: int = 8,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        norm_eps: float = 1e-6,
        chunk_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Weights are normal with standard deviation 0.02, as in flash-linear-attention.

        **Arguments:**

        - `width`: of the residual stream.
        - `num_heads`, `expand_k`, `expand_v`: `expand_k * width` key and `expand_v * width` value channels, over the
            heads. Each head has an even number of key channels.
        - `norm_eps`: of the heads' norm.
        - `chunk_size`: of the recurrence.
        - `dtype`: of the projections.
        - `key`: for the initialisation.

        **Raises:** `ValueError` when the heads do not divide the channels, or key channels cannot be paired.
        """
        heads, key_dim, value_dim = state_shape("RetNetMixer", width, num_heads, expand_k, expand_v)
        if key_dim % 2 != 0:
            raise ValueError(
                f"RetNetMixer: int(`expand_k` * `width`) // `num_heads` must be even, as features turn in pairs, got "
                f"{key_dim}."
            )
        keys = jax.random.split(key, 5)
        self.q_proj = projection(width, heads * key_dim, dtype=dtype, key=keys[0])
        self.k_proj = projection(width, heads * key_dim, dtype=dtype, key=keys[1])
        self.v_proj = projection(width, heads * value_dim, dtype=dtype, key=keys[2])
        self.g_proj = projection(width, heads * value_dim, dtype=dtype, key=keys[3])
        self.phase = ssmkit.RunningPhase((key_dim // 2,))
        self.recurrence = RetNetRecurrence((heads, key_dim, value_dim), chunk_size=chunk_size)
        self.norm = ssmkit.RMSNorm(value_dim, eps=norm_eps)
        self.o_proj = projection(heads * value_dim, width, dtype=dtype, key=keys[4])

    def init_cache(self) -> RetNetCache:
        """Position 0 and a zero state, float32."""
        return RetNetCache(phase=self.phase.init_state(), state=self.recurrence.init_state())

    def mix(
        self, x: Float[Array, "*time width"], cache: RetNetCache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], RetNetCache]:
        """The equations above, for many tokens or one."""
        heads, key, _ = self.recurrence.state_shape
        split = lambda channels: jnp.reshape(channels, (*x.shape[:-1], heads, -1))  # noqa: E731
        theta = 10000.0 ** (-2.0 * np.arange(key // 2) / key)
        turns = jnp.broadcast_to(jnp.asarray(theta / (2 * math.pi), jnp.float32), (*x.shape[:-1], key // 2))
        after, phase = advance(self.phase, turns, cache.phase)
        angle = 2 * math.pi * (after - turns)[..., None, :]  # the first token does not turn
        gate = self.g_proj(x)
        inputs = RetNetInputs(
            q=_turn(split(self.q_proj(x)), angle), k=_turn(split(self.k_proj(x)), angle), v=split(self.v_proj(x))
        )
        y, state = advance(self.recurrence, inputs, cache.state)
        y = self.o_proj(jnp.reshape(self.norm(y), gate.shape) * ssmkit.silu(gate))
        return y, RetNetCache(phase=phase, state=state)


def _turn(x: Float[Array, "*time heads key"], angle: Float[Array, "*time 1 pair"]) -> Float[Array, "*time heads key"]:
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
