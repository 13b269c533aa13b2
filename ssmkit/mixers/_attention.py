"""Softmax attention as a mixer: the operator between its projections."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from .._construction import checks_arguments
from .._types import PRNGKeyArray
from ..layers._apart import Apart
from ..layers._array_kinds import ArrayKind
from ..layers._linear import Linear, Part
from ..layers._norms import RMSNorm
from ..operators._attention import Attention, AttentionInputs, AttentionState
from ..operators._conv import CausalConv1d, convolve_parts
from ._mixer import AbstractRecurrentMixer, Advance


class AttentionCache(NamedTuple):
    """The cache of attention: the keys and values of earlier tokens, and the window of the convolution, if any."""

    attention: AttentionState
    window: Any = None


class AttentionMixer(AbstractRecurrentMixer[AttentionCache]):
    r"""Grouped-query attention with rotary positions: projections, `ssmkit.Attention`, and an output projection.

    With `conv_kernel`, a causal convolution without an activation follows the projections of queries, keys and values.
    With `qk_norm`, each head's query and key are normalised before their rotation. With `use_output_gate`, the heads'
    outputs are multiplied by $\sigma(W_g x)$ before the output projection.
    """

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    conv: CausalConv1d | Apart | None
    gate: Linear | None
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    attention: Attention
    o_proj: Annotated[Linear, ArrayKind.PROJECTION_OUT]

    @checks_arguments
    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        sliding_window: int | None = None,
        rope_theta: float | None = 10000.0,
        partial_rotary_factor: float = 1.0,
        rope_scaling: Mapping[str, Any] | None = None,
        scale: float | None = None,
        logit_softcapping: float | None = None,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        use_output_gate: bool = False,
        use_bias: bool = False,
        use_output_bias: bool = False,
        conv_kernel: int | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise the projections as `ssmkit.Linear`.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `num_heads`, `num_kv_heads`, `sliding_window`, `rope_theta`, `rope_scaling`, `scale`, `logit_softcapping`: as
            for `ssmkit.Attention`.
        - `head_dim`: the number of features per head; `width / num_heads` when `None`.
        - `partial_rotary_factor`: the share of a head's features that is rotated, in (0, 1].
        - `qk_norm`: whether queries and keys are normalised.
        - `norm_eps`: the epsilon of these norms.
        - `use_output_gate`: whether outputs are gated.
        - `use_bias`: whether the projections of queries, keys and values have a bias.
        - `use_output_bias`: whether the output projection has a bias.
        - `conv_kernel`: the number of taps of the convolution, which has a bias; `None` for no convolution.
        - `dtype`: the dtype of the projections; keys and values are stored in float32.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` naming the argument that does not fit.
        """
        if head_dim is None:
            if width % num_heads != 0:
                raise ValueError(
                    f"AttentionMixer: `num_heads` must divide `width` = {width} where `head_dim` is left out, got "
                    f"{num_heads}."
                )
            head_dim = width // num_heads
        if not 0 < partial_rotary_factor <= 1:
            raise ValueError(
                f"AttentionMixer: `partial_rotary_factor` must be in (0, 1], got {partial_rotary_factor}; "
                "`rope_theta=None` rotates nothing."
            )
        self.attention = Attention(
            num_heads,
            head_dim,
            num_kv_heads=num_kv_heads,
            sliding_window=sliding_window,
            rope_theta=rope_theta,
            rotary_dim=int(partial_rotary_factor * head_dim),
            rope_scaling=rope_scaling,
            scale=scale,
            logit_softcapping=logit_softcapping,
        )
        inner, shared = num_heads * head_dim, self.attention.num_kv_heads * head_dim
        keys = jax.random.split(key, 6)
        self.q_proj = Linear(width, inner, use_bias=use_bias, dtype=dtype, key=keys[0])
        groups = [Part(shared, self.attention.num_kv_heads)]
        self.k_proj = Linear(width, shared, use_bias=use_bias, parts=groups, dtype=dtype, key=keys[1])
        self.v_proj = Linear(width, shared, use_bias=use_bias, parts=groups, dtype=dtype, key=keys[2])
        self.conv = None
        if conv_kernel is not None:
            parts = [Part(inner, num_heads), *groups, *groups]
            self.conv = CausalConv1d(inner + 2 * shared, conv_kernel, parts=parts, dtype=dtype, key=keys[5])
        self.gate = Linear(width, inner, dtype=dtype, key=keys[3]) if use_output_gate else None
        self.q_norm, self.k_norm = (RMSNorm(head_dim, eps=norm_eps) if qk_norm else None for _ in range(2))
        self.o_proj = Linear(inner, width, use_bias=use_output_bias, dtype=dtype, key=keys[4])

    def init_cache(self) -> AttentionCache:
        """The empty state of the operator, and an empty window."""
        return AttentionCache(self.attention.init_state(), None if self.conv is None else self.conv.init_state())

    def reserve(self, cache: AttentionCache, tokens: int) -> AttentionCache:
        """As `AbstractMixer.reserve`."""
        return cache._replace(attention=self.attention.reserve(cache.attention, tokens))

    def mix(
        self, x: Float[Array, "*time width"], cache: AttentionCache, advance: Advance
    ) -> tuple[Float[Array, "*time width"], AttentionCache]:
        """Project, attend and project back, for many tokens or for one."""
        projected, window = tuple(projection(x) for projection in (self.q_proj, self.k_proj, self.v_proj)), None
        if self.conv is not None:
            projected, window = convolve_parts(self.conv, projected, cache.window, advance)
        query, key, value = (jnp.reshape(part, (*x.shape[:-1], -1, self.attention.head_dim)) for part in projected)
        query = query if self.q_norm is None else self.q_norm(query)
        key = key if self.k_norm is None else self.k_norm(key)
        y, state = advance(self.attention, AttentionInputs(query, key, value), cache.attention)
        y = jnp.reshape(y, (*x.shape[:-1], -1))
        y = self.o_proj(y if self.gate is None else y * jax.nn.sigmoid(self.gate(x)))
        return y, AttentionCache(state, window)
