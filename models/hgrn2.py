"""HGRN2: gated linear RNNs with state expansion (arXiv 2404.07904)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._projections import projection


class HGRN2Inputs(eqx.Module):
    """What the recurrence sees of one token; a leading `time` axis for many. `q` and `f` are raw."""

    q: Float[Array, "*time heads key"]
    f: Float[Array, "*time heads key"]
    i: Float[Array, "*time heads value"]


class HGRN2Recurrence(ssmkit.DiagonalChunkedRecurrence[HGRN2Inputs]):
    r"""The complement of the forget gate is the key (arXiv 2404.07904, section 3.2).

    $$g_t = \ell + (1 - \ell) \sigma(f_t), \qquad S_t = \operatorname{diag}(g_t) S_{t-1} + (1 - g_t) i_t^\top, \qquad
    o_t = S_t^\top \operatorname{silu}(q_t) / \sqrt{d_k}$$

    The factor $1/\sqrt{d_k}$ is flash-linear-attention's, not the paper's: the norm that follows leaves of it only its
    share in $\epsilon$.

    **Arguments:**

    - `state_shape`: `(heads, key, value)`.
    - `lower_bound`: $\ell$ in $[0, 1)$, of this layer: the paper makes it grow with depth, from 0 in the first.
    - `chunk_size`: as `ssmkit.DiagonalChunkedRecurrence`.
    """

    state_shape: tuple[int, int, int] = eqx.field(static=True)
    lower_bound: float = eqx.field(static=True, default=0.0)

    def coefficients(self, inputs: HGRN2Inputs) -> ssmkit.Coefficients:
        """The equations above."""
        f, bound = inputs.f.astype(jnp.float32), self.lower_bound
        return ssmkit.Coefficients(
            log_decay=_log_gate(f, bound),
            write=(1.0 - bound) * jax.nn.sigmoid(-f),
            value=inputs.i,
            read=ssmkit.silu(inputs.q) * self.state_shape[1] ** -0.5,
        )


class HGRN2Mixer(ssmkit.AbstractRecurrentMixer[Float[Array, "heads key value"]]):
    r"""Projections, recurrence, norm over all heads at once, projection (arXiv 2404.07904); no output gate.

    $$y = W_o \operatorname{RMSNorm}(\operatorname{HGRN2}(W_q x, W_f x, W_i x))$$

    The cache is the recurrence's state.
    """

    q_proj: ssmkit.Linear
    f_proj: ssmkit.Linear
    i_proj: ssmkit.Linear
    recurrence: HGRN2Recurrence
    norm: ssmkit.RMSNorm
    o_proj: ssmkit.Linear

    def __init__(
        self,
        width: int,
        *,
        expand_ratio: int = 128,
        num_heads: int | None = None,
        lower_bound: float = 0.0,
        norm_eps: float = 1e-5,
        chunk_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Weights are normal with standard deviation 0.02, as in flash-linear-attention.

        **Arguments:**

        - `width`: of the residual stream.
        - `expand_ratio`: key channels per head.
        - `num_heads`: `width // expand_ratio` when `None`; each has `width // num_heads` value channels.
        - `lower_bound`: of the forget gate, in [0, 1). At initialisation layer `l` of `L` has `l / L`.
        - `norm_eps`: of the output norm.
        - `chunk_size`: of the recurrence.
        - `dtype`: of the projections.
        - `key`: for the initialisation.

        **Raises:** `ValueError` when the heads do not divide `width`, or an argument is out of range.
        """
        if expand_ratio < 1:
            raise ValueError(f"HGRN2Mixer: `expand_ratio` must be at least 1, got {expand_ratio}.")
        if num_heads is None:
            if width % expand_ratio != 0:
                raise ValueError(
                    f"HGRN2Mixer: `expand_ratio` must divide `width` = {width} unless `num_heads` is given, got "
                    f"{expand_ratio}."
                )
            num_heads = width // expand_ratio
        if num_heads < 1 or width % num_heads != 0:
            raise ValueError(f"HGRN2Mixer: `num_heads` must divide `width` = {width}, got {num_heads}.")
        if not 0.0 <= lower_bound < 1.0:
            raise ValueError(f"HGRN2Mixer: `lower_bound` must lie in [0, 1), got {lower_bound}.")
        keys = jax.random.split(key, 4)
        self.q_proj = projection(width, num_heads * expand_ratio, dtype=dtype, key=keys[0])
        self.f_proj = projection(width, num_heads * expand_ratio, dtype=dtype, key=keys[1])
        self.i_proj = projection(width, width, dtype=dtype, key=keys[2])
        shape = (num_heads, expand_ratio, width // num_heads)
        self.recurrence = HGRN2Recurrence(shape, lower_bound, chunk_size=chunk_size)
        self.norm = ssmkit.RMSNorm(width, eps=norm_eps)
        self.o_proj = projection(width, width, dtype=dtype, key=keys[3])

    def init_cache(self) -> Float[Array, "heads key value"]:
        """A zero state, float32."""
        return self.recurrence.init_state()

    def mix(
        self, x: Float[Array, "*time width"], cache: Float[Array, "heads key value"], advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], Float[Array, "heads key value"]]:
        """The equations above, for many tokens or one."""
        split = lambda channels: jnp.reshape(channels, (*x.shape[:-1], self.recurrence.state_shape[0], -1))  # noqa: E731
        inputs = HGRN2Inputs(q=split(self.q_proj(x)), f=split(self.f_proj(x)), i=split(self.i_proj(x)))
        y, cache = advance(self.recurrence, inputs, cache)
        return self.o_proj(self.norm(jnp.reshape(y, x.shape))), cache


def _log_gate(f: Float[Array, "heads key"], bound: float) -> Float[Array, "heads key"]:
    """The logarithm of `bound + (1 - bound) sigmoid(f)`, to full relative precision near 0 and near minus infinity."""
    if bound == 0.0:
        return jax.nn.log_sigmoid(f)
    near_one = jnp.log1p((bound - 1.0) * jax.nn.sigmoid(-jnp.maximum(f, 0.0)))
    return jnp.where(f > 0.0, near_one, jnp.log(bound + (1.0 - bound) * jax.nn.sigmoid(f)))
