"""Gated linear attention (arXiv 2312.06635)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._projections import projection, state_shape


class GLAInputs(eqx.Module):
    """What the recurrence sees of one token; a leading `time` axis for many. `gate` is raw, before its sigmoid."""

    q: Float[Array, "*time heads key"]
    k: Float[Array, "*time heads key"]
    v: Float[Array, "*time heads value"]
    gate: Float[Array, "*time heads key"]


class GLARecurrence(ssmkit.DiagonalChunkedRecurrence[GLAInputs]):
    r"""One decay per key channel, a function of the input (arXiv 2312.06635, sections 4.1 and 4.4).

    $$S_t = \operatorname{diag}(\alpha_t) S_{t-1} + k_t v_t^\top, \qquad o_t = S_t^\top q_t / \sqrt{d_k}, \qquad
    \alpha_t = \sigma(g_t)^{1/\tau}$$

    **Arguments:**

    - `state_shape`: `(heads, key, value)`.
    - `gate_logit_normalizer`: $\tau$.
    - `chunk_size`: as `ssmkit.DiagonalChunkedRecurrence`.
    """

    state_shape: tuple[int, int, int] = eqx.field(static=True)
    gate_logit_normalizer: float = eqx.field(static=True, default=16.0)

    def coefficients(self, inputs: GLAInputs) -> ssmkit.Coefficients:
        """The equations above."""
        return ssmkit.Coefficients(
            log_decay=jax.nn.log_sigmoid(inputs.gate.astype(jnp.float32)) / self.gate_logit_normalizer,
            write=inputs.k,
            value=inputs.v,
            read=inputs.q * self.state_shape[1] ** -0.5,
        )


class GLAMixer(ssmkit.AbstractRecurrentMixer[Float[Array, "heads key value"]]):
    r"""Gated linear attention with an output gate (arXiv 2312.06635, section 4.4).

    With $q, k, v = W_q x, W_k x, W_v x$ and $g = W_2 W_1 x + b$ of low rank,

    $$y = W_o (\operatorname{RMSNorm}_{head}(\operatorname{GLA}(q, k, v, g)) \odot \operatorname{silu}(W_g x)).$$

    The cache is the recurrence's state. Normalised before it is gated; all heads share the norm's weight.
    """

    q_proj: ssmkit.Linear
    k_proj: ssmkit.Linear
    v_proj: ssmkit.Linear
    gk_down: ssmkit.Linear
    gk_up: ssmkit.Linear
    g_proj: ssmkit.Linear
    recurrence: GLARecurrence
    norm: ssmkit.RMSNorm
    o_proj: ssmkit.Linear

    def __init__(
        self,
        width: int,
        *,
        num_heads: int = 4,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_logit_normalizer: float = 16.0,
        gate_low_rank_dim: int = 16,
        norm_eps: float = 1e-6,
        chunk_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Weights are normal with standard deviation 0.02 and biases zero, as in flash-linear-attention.

        **Arguments:**

        - `width`: of the residual stream.
        - `num_heads`, `expand_k`, `expand_v`: `expand_k * width` key and `expand_v * width` value channels, over the
            heads.
        - `gate_logit_normalizer`: $\\tau$ of the recurrence.
        - `gate_low_rank_dim`: rank of the forget gate's projection.
        - `norm_eps`: of the heads' norm.
        - `chunk_size`: of the recurrence.
        - `dtype`: of the projections.
        - `key`: for the initialisation.

        **Raises:** `ValueError` when the heads do not divide the channels, or a size is not positive.
        """
        heads, key_dim, value_dim = state_shape("GLAMixer", width, num_heads, expand_k, expand_v)
        if gate_low_rank_dim < 1:
            raise ValueError(f"GLAMixer: `gate_low_rank_dim` must be at least 1, got {gate_low_rank_dim}.")
        if gate_logit_normalizer <= 0:
            raise ValueError(f"GLAMixer: `gate_logit_normalizer` must be above 0, got {gate_logit_normalizer}.")
        keys = jax.random.split(key, 7)
        self.q_proj = projection(width, heads * key_dim, dtype=dtype, key=keys[0])
        self.k_proj = projection(width, heads * key_dim, dtype=dtype, key=keys[1])
        self.v_proj = projection(width, heads * value_dim, dtype=dtype, key=keys[2])
        self.gk_down = projection(width, gate_low_rank_dim, dtype=dtype, key=keys[3])
        self.gk_up = projection(gate_low_rank_dim, heads * key_dim, use_bias=True, dtype=dtype, key=keys[4])
        self.g_proj = projection(width, heads * value_dim, dtype=dtype, key=keys[5])
        self.recurrence = GLARecurrence((heads, key_dim, value_dim), gate_logit_normalizer, chunk_size=chunk_size)
        self.norm = ssmkit.RMSNorm(value_dim, eps=norm_eps)
        self.o_proj = projection(heads * value_dim, width, dtype=dtype, key=keys[6])

    def init_cache(self) -> Float[Array, "heads key value"]:
        """A zero state, float32."""
        return self.recurrence.init_state()

    def mix(
        self, x: Float[Array, "*time width"], cache: Float[Array, "heads key value"], advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], Float[Array, "heads key value"]]:
        """The equations above, for many tokens or one."""
        split = lambda channels: jnp.reshape(channels, (*x.shape[:-1], self.recurrence.state_shape[0], -1))  # noqa: E731
        gate = self.g_proj(x)
        inputs = GLAInputs(
            q=split(self.q_proj(x)),
            k=split(self.k_proj(x)),
            v=split(self.v_proj(x)),
            gate=split(self.gk_up(self.gk_down(x))),
        )
        y, cache = advance(self.recurrence, inputs, cache)
        return self.o_proj(jnp.reshape(self.norm(y), gate.shape) * ssmkit.silu(gate)), cache
