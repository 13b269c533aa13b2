"""A transformer that several layers use, each with adapters of its own (Zamba2, arXiv 2411.15242)."""

from collections.abc import Callable
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit


class SharedTransformer(eqx.Module):
    """The weights of attention and a gated MLP that several layers use. Its inputs are twice as wide as the stream."""

    attention_norm: ssmkit.RMSNorm
    q_proj: ssmkit.Linear
    k_proj: ssmkit.Linear
    v_proj: ssmkit.Linear
    attention: ssmkit.Attention
    o_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    mlp_norm: ssmkit.RMSNorm
    gate_up: ssmkit.Linear | ssmkit.Apart
    down: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        attention: ssmkit.Attention,
        *,
        intermediate_size: int,
        activation: str | Callable[[Array], Array],
        use_bias: bool,
        norm_eps: float,
        dtype: DTypeLike,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `width`: the width of the residual stream.
        - `attention`: the operator between the projections.
        - `intermediate_size`, `activation`, `use_bias`: the MLP, as `ssmkit.GatedMLP`.
        - `norm_eps`, `dtype`, `key`: the epsilon of the norms, the dtype of the projections, and the key for their
            initialisation.
        """
        inner = attention.num_heads * attention.head_dim
        groups = ssmkit.Part(attention.num_kv_heads * attention.head_dim, attention.num_kv_heads)
        hidden = ssmkit.Part(intermediate_size, intermediate_size)
        keys = jax.random.split(key, 6)
        self.attention_norm = ssmkit.RMSNorm(2 * width, eps=norm_eps)
        self.q_proj = ssmkit.Linear(2 * width, inner, dtype=dtype, key=keys[0])
        self.k_proj = ssmkit.Linear(2 * width, groups.size, parts=[groups], dtype=dtype, key=keys[1])
        self.v_proj = ssmkit.Linear(2 * width, groups.size, parts=[groups], dtype=dtype, key=keys[2])
        self.attention = attention
        self.o_proj = ssmkit.Linear(inner, width, dtype=dtype, key=keys[3])
        self.mlp_norm = ssmkit.RMSNorm(width, eps=norm_eps)
        self.gate_up = ssmkit.Linear(
            width, 2 * hidden.size, use_bias=use_bias, parts=2 * [hidden], dtype=dtype, key=keys[4]
        )
        self.down = ssmkit.Linear(hidden.size, width, use_bias=use_bias, dtype=dtype, key=keys[5])
        self.activation = ssmkit.activation_of(activation)


class Adapter(eqx.Module):
    """What one use of a shared projection adds to its output: a projection of low rank (arXiv 2106.09685)."""

    down: Annotated[ssmkit.Linear, ssmkit.ArrayKind.SHARED]
    up: Any  # an `ssmkit.Linear`, or what `ssmkit.shard` makes of it, as of the shared projection

    def __init__(self, shared: Any, rank: int, *, dtype: DTypeLike, key: PRNGKeyArray):
        """**Arguments:**

        - `shared`: the shared projection, an `ssmkit.Linear`.
        - `rank`: the number of features between the two factors.
        - `dtype`, `key`: the dtype of the factors, and the key for their initialisation.
        """
        rows, width = shared.weight.shape
        down, up = jax.random.split(key)
        self.down = ssmkit.Linear(width, rank, dtype=dtype, key=down)
        self.up = ssmkit.Linear(rank, rows, parts=shared.parts, dtype=dtype, key=up)


class TransformerUse(eqx.Module):
    """The weights that one use of a shared transformer has alone: adapters, and a projection of the output."""

    q_adapter: Adapter | None
    k_adapter: Adapter | None
    v_adapter: Adapter | None
    gate_up_adapter: Adapter | None
    out_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.SHARED]

    def __init__(
        self,
        width: int,
        shared: SharedTransformer,
        *,
        adapter_rank: int | None,
        use_attention_adapters: bool,
        dtype: DTypeLike,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `width`: the width of the residual stream.
        - `shared`: the transformer.
        - `adapter_rank`: the rank of the adapters; `None` for none.
        - `use_attention_adapters`: whether queries, keys and values have adapters, as the MLP has.
        - `dtype`, `key`: the dtype of the projections, and the key for their initialisation.
        """
        *keys, out_key = jax.random.split(key, 5)
        layers = (shared.q_proj, shared.k_proj, shared.v_proj, shared.gate_up)
        ranks = (*3 * [adapter_rank if use_attention_adapters else None], adapter_rank)
        self.q_adapter, self.k_adapter, self.v_adapter, self.gate_up_adapter = (
            None if rank is None else Adapter(layer, rank, dtype=dtype, key=own)
            for layer, rank, own in zip(layers, ranks, keys, strict=True)
        )
        self.out_proj = ssmkit.Linear(width, width, dtype=dtype, key=out_key)

    def mix(
        self,
        shared: SharedTransformer,
        x: Float[Array, "*time both"],
        state: ssmkit.AttentionState,
        advance: ssmkit.Advance,
    ) -> tuple[Float[Array, "*time width"], ssmkit.AttentionState]:
        """Attend, run the MLP and project, for many tokens or for one. No residual sum is inside."""
        x = shared.attention_norm(x)
        split = lambda y: jnp.reshape(y, (*x.shape[:-1], -1, shared.attention.head_dim))
        projections = (shared.q_proj, shared.k_proj, shared.v_proj)
        adapters = (self.q_adapter, self.k_adapter, self.v_adapter)
        heads = [split(_adapted(*pair, x)) for pair in zip(projections, adapters, strict=True)]
        y, state = advance(shared.attention, ssmkit.AttentionInputs(*heads), state)
        x = shared.mlp_norm(shared.o_proj(jnp.reshape(y, (*x.shape[:-1], -1))))
        gate, up = shared.gate_up.split(x)
        if (adapter := self.gate_up_adapter) is not None:
            more_gate, more_up = adapter.up.split(adapter.down(x))
            gate, up = gate + more_gate, up + more_up
        return self.out_proj(shared.down(shared.activation(gate) * up)), state


def _adapted(layer: ssmkit.Linear, adapter: Adapter | None, x: Float[Array, "*time both"]) -> Array:
    return layer(x) if adapter is None else layer(x) + adapter.up(adapter.down(x))
