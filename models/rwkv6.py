"""RWKV-6 "Finch" (arXiv 2404.05892)."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._linear_attention import state_shape
from ._projections import projection
from ._rwkv6 import DataDependentLerp, depth, initial_bonus, initial_decay, small_uniform


class RWKV6Inputs(eqx.Module):
    """The inputs of the recurrence for one token, with a raw `w`; many tokens have a leading `time` axis."""

    r: Float[Array, "*time heads key"]
    k: Float[Array, "*time heads key"]
    v: Float[Array, "*time heads value"]
    w: Float[Array, "*time heads key"]


class RWKV6Recurrence(ssmkit.DiagonalChunkedRecurrence[RWKV6Inputs]):
    r"""A recurrence that reads the current token through a bonus $u$, not through the state (arXiv 2404.05892, 4.2).

    $$o_t = (S_{t-1} + \operatorname{diag}(u) k_t v_t^\top)^\top r_t, \qquad
    S_t = \operatorname{diag}(e^{-e^{\omega + w_t}}) S_{t-1} + k_t v_t^\top$$

    The exponent $\omega + w_t$ is clipped at 5, where the decay $e^{-148}$ is already 0 in float32. Without clipping,
    the inner exponential would overflow, and the gradient of a zero decay would be NaN.
    """

    time_decay: Float[Array, "heads key"]
    bonus: Float[Array, "heads key"]
    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def coefficients(self, inputs: RWKV6Inputs) -> ssmkit.Coefficients:
        """The coefficients of one token, by the equations of the class."""
        exponent = jnp.minimum(self.time_decay + inputs.w.astype(self.time_decay.dtype), 5.0)
        return ssmkit.Coefficients(
            log_decay=-jnp.exp(exponent), write=inputs.k, value=inputs.v, read=inputs.r, bonus=self.bonus
        )


class RWKV6Cache(eqx.Module):
    """The last token's features and the recurrence's state."""

    shift: Float[Array, "*batch width"]
    state: Float[Array, "*batch heads key value"]


class RWKV6Mixer(ssmkit.AbstractRecurrentMixer[RWKV6Cache]):
    r"""The time mixing of RWKV-6 (arXiv 2404.05892, section 4.2).

    With $x^r, x^w, x^k, x^v, x^g$ between $x_t$ and $x_{t-1}$, each by its own data-dependent share,

    $$y = W_o (\operatorname{LayerNorm}_{head}(\operatorname{RWKV6}(W_r x^r, W_k x^k, W_v x^v,
    D_2 \tanh(D_1 x^w))) \odot \operatorname{silu}(W_g x^g)).$$
    """

    lerp: DataDependentLerp
    decay_down: Annotated[ssmkit.Linear, ssmkit.ArrayKind.SHARED]
    decay_up: ssmkit.Linear
    r_proj: ssmkit.Linear
    k_proj: ssmkit.Linear
    v_proj: ssmkit.Linear
    g_proj: ssmkit.Linear
    shift: ssmkit.Shift
    recurrence: RWKV6Recurrence
    norm: ssmkit.LayerNorm
    o_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        num_heads: int | None = None,
        head_dim: int | None = None,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        proj_low_rank_dim: int = 32,
        gate_low_rank_dim: int = 64,
        norm_eps: float = 1e-5,
        layer_idx: int = 0,
        num_hidden_layers: int = 1,
        chunk_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise as the authors' code, by the depth of the layer; the output projection starts at zero.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `num_heads`, `expand_k`, `expand_v`: `expand_k * width` key and `expand_v * width` value channels, over the
            heads. There are 4 heads when `None`. The authors' models have 1.0 for both factors.
        - `head_dim`: the number of key channels per head, in place of `num_heads`; 64 in the authors' models.
        - `proj_low_rank_dim`, `gate_low_rank_dim`: ranks of the five shares and of $D_1, D_2$.
        - `norm_eps`: the epsilon of the heads' norm; in the authors' models 1e-5 times the square of their
            `head_size_divisor`, 8: 64e-5.
        - `layer_idx`, `num_hidden_layers`: the depth, from 0, and the number of layers.
        - `chunk_size`: the chunk size of the recurrence.
        - `dtype`: the dtype of the projections. All else is float32.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` when the heads do not divide the channels, or a size is out of range.
        """
        count = _heads(int(expand_k * width), num_heads, head_dim)
        heads, key_dim, value_dim = state_shape("RWKV6Mixer", width, count, expand_k, expand_v)
        before, after = depth("RWKV6Mixer", layer_idx, num_hidden_layers)
        keys, orthogonal, zeros = jax.random.split(key, 8), jax.nn.initializers.orthogonal, jax.nn.initializers.zeros
        linear = lambda rows, columns, draw, key: projection(columns, rows, draw, dtype=dtype, key=key)
        self.lerp = DataDependentLerp(width, proj_low_rank_dim, before, after, dtype=dtype, key=keys[0])
        self.decay_down = linear(gate_low_rank_dim, width, zeros, keys[1])
        self.decay_up = linear(heads * key_dim, gate_low_rank_dim, small_uniform, keys[2])
        self.r_proj = linear(heads * key_dim, width, orthogonal(1.0), keys[3])
        self.k_proj = linear(heads * key_dim, width, orthogonal(0.1), keys[4])
        self.v_proj = linear(heads * value_dim, width, orthogonal(1.0), keys[5])
        self.g_proj = linear(heads * value_dim, width, orthogonal(0.1), keys[6])
        self.shift = ssmkit.Shift((width,))
        decay, bonus = initial_decay(heads, key_dim, before), initial_bonus(heads, key_dim, before)
        self.recurrence = RWKV6Recurrence(
            time_decay=decay, bonus=bonus, state_shape=(heads, key_dim, value_dim), chunk_size=chunk_size
        )
        norm = ssmkit.LayerNorm(heads * value_dim, groups=heads, eps=norm_eps)
        scale = ((1 + layer_idx) / num_hidden_layers) ** 0.7
        self.norm = eqx.tree_at(lambda norm: norm.weight, norm, replace_fn=lambda weight: weight * scale)
        self.o_proj = linear(width, heads * value_dim, zeros, keys[7])

    def init_cache(self) -> RWKV6Cache:
        """Zero features of the previous token and a zero state, in float32."""
        return RWKV6Cache(shift=self.shift.init_state(), state=self.recurrence.init_state())

    def mix(
        self, x: Float[Array, "*time width"], cache: RWKV6Cache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], RWKV6Cache]:
        """The equations of the class, for many tokens or for one."""
        split = lambda channels: jnp.reshape(channels, (*x.shape[:-1], self.recurrence.state_shape[0], -1))
        previous, shift = advance(self.shift, x, cache.shift)
        x_r, x_w, x_k, x_v, x_g = self.lerp(x.astype(previous.dtype), previous)
        inputs = RWKV6Inputs(
            r=split(self.r_proj(x_r)),
            k=split(self.k_proj(x_k)),
            v=split(self.v_proj(x_v)),
            w=split(self.decay_up(jnp.tanh(self.decay_down(x_w)))),
        )
        y, state = advance(self.recurrence, inputs, cache.state)
        gate = ssmkit.silu(self.g_proj(x_g))
        return self.o_proj(self.norm(jnp.reshape(y, gate.shape)) * gate), RWKV6Cache(shift=shift, state=state)


def _heads(key_channels: int, num_heads: int | None, head_dim: int | None) -> int:
    if head_dim is None:
        return 4 if num_heads is None else num_heads
    if num_heads is not None:
        raise ValueError(f"RWKV6Mixer: give `num_heads` or `head_dim`, not both, got {num_heads} and {head_dim}.")
    if key_channels % head_dim != 0:
        raise ValueError(
            f"RWKV6Mixer: `head_dim` must divide the {key_channels} key channels, `expand_k` * `width`, got {head_dim}."
        )
    return key_channels // head_dim
