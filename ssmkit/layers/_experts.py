"""Experts: equal MLPs whose matrices are stacked, each for some of the tokens."""

from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax
from jaxtyping import Array, DTypeLike, Float, Int

from .._types import PRNGKeyArray
from ._array_kinds import ArrayKind
from ._linear import StackedLinear
from ._matrix import project


class Experts(eqx.Module):
    r"""Equal MLPs: $W_{down} (\phi(W_{gate} x) \odot W_{up} x)$, or $W_{down} \, \phi(W_{up} x)$ without gates.

    `ssmkit.layers._routed.routed` computes them for tokens.
    """

    gate: StackedLinear | None
    up: StackedLinear
    down: Annotated[StackedLinear, ArrayKind.PROJECTION_OUT]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        num_experts: int,
        intermediate_size: int,
        *,
        activation: Callable[[Array], Array],
        gated: bool,
        dtype: DTypeLike,
        key: PRNGKeyArray,
    ):
        """Initialise every matrix as a `Linear`."""
        self.activation = activation
        gate_key, up_key, down_key = jax.random.split(key, 3)
        into = lambda key: StackedLinear(num_experts, width, intermediate_size, dtype=dtype, key=key)
        self.gate = into(gate_key) if gated else None
        self.up = into(up_key)
        self.down = StackedLinear(num_experts, intermediate_size, width, dtype=dtype, key=down_key)

    def one(self, index: Int[Array, ""]) -> "Experts":
        """One of the experts: the same module, whose arrays have no leading axis of experts."""
        return jax.tree.map(lambda all: jax.lax.dynamic_index_in_dim(all, index, keepdims=False), self)

    def __call__(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
        """The output of one expert, as `one` gives it."""
        hidden = project(self.up.weight, x)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(project(self.gate.weight, x)) * hidden
        return project(self.down.weight, hidden)
