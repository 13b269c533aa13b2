"""Experts: equal MLPs whose matrices are stacked, each for some of the tokens."""

from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from .._types import PRNGKeyArray
from ._array_kinds import ArrayKind
from ._linear import StackedLinear
from ._matrix import project, project_one


class Experts(eqx.Module):
    r"""Equal MLPs: $W_{down} (\phi(W_{gate} x) \odot W_{up} x)$, or $W_{down} \, \phi(W_{up} x)$ without gates.

    `ssmkit.layers._routed.routed` computes them for tokens.
    """

    gate: StackedLinear | None
    up: StackedLinear
    down: Annotated[StackedLinear, ArrayKind.PROJECTION_OUT]
    activation: Callable[[Array], Array] = eqx.field(static=True)
    first: Int[Array, ""] | None
    """The number of the first of these experts, if the arrays hold those of other layers too."""

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
        self.activation, self.first = activation, None
        gate_key, up_key, down_key = jax.random.split(key, 3)
        into = lambda key: StackedLinear(num_experts, width, intermediate_size, dtype=dtype, key=key)
        self.gate = into(gate_key) if gated else None
        self.up = into(up_key)
        self.down = StackedLinear(num_experts, intermediate_size, width, dtype=dtype, key=down_key)

    def of_layer(self, layer: Int[Array, ""]) -> "Experts":
        """The experts of one layer, where arrays have a leading axis of layers. No array is copied."""
        every = jax.tree.map(lambda all: jnp.reshape(all, (-1, *all.shape[2:])), self)
        first = layer * self.up.weight.shape[1]
        return eqx.tree_at(lambda experts: experts.first, every, first, is_leaf=lambda node: node is None)

    def one(self, index: Int[Array, ""], x: Float[Array, "*tokens width"]) -> Float[Array, "*tokens width"]:
        """The output of one of the experts."""
        return self._run(lambda layer, x: project_one(layer.weight, index, x), x)

    def __call__(self, x: Float[Array, "*tokens width"]) -> Float[Array, "*tokens width"]:
        """The output, where the arrays of one expert are in place of those of all."""
        return self._run(lambda layer, x: project(layer.weight, x), x)

    def _run(self, times: Callable[[StackedLinear, Array], Array], x: Array) -> Array:
        hidden = times(self.up, x)
        if self.gate is None:
            return times(self.down, self.activation(hidden))
        return times(self.down, self.activation(times(self.gate, x)) * hidden)
