"""The MLPs that published models put between their sequence mixers."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from .._construction import checks_arguments
from .._types import PRNGKeyArray, shown
from ..layers._activations import activation_of
from ..layers._array_kinds import ArrayKind
from ..layers._linear import Linear
from ._stateless import AbstractStatelessMixer


class MLP(AbstractStatelessMixer):
    r"""A mixer without a state: $W_{down} \, \phi(W_{up} x)$."""

    up: Linear
    down: Annotated[Linear, ArrayKind.PROJECTION_OUT]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    @checks_arguments
    def __init__(
        self,
        width: int,
        *,
        intermediate_size: int,
        activation: str | Callable[[Array], Array] = "gelu",
        use_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise the two projections.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `intermediate_size`: the width of the hidden layer.
        - `activation`: $\\phi$, as for `ssmkit.activation_of`: a name, such as `"relu2"`, or your own function.
        - `use_bias`, `dtype`: whether the two projections have a bias, and their dtype.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` naming the argument that is out of range.
        """
        self.activation = activation_of(activation)
        up_key, down_key = jax.random.split(key)
        self.up = Linear(width, intermediate_size, use_bias=use_bias, dtype=dtype, key=up_key)
        self.down = Linear(intermediate_size, width, use_bias=use_bias, dtype=dtype, key=down_key)

    def each(self, x: Float[Array, "*time width"]) -> Float[Array, "*time width"]:
        """As `AbstractStatelessMixer.each`."""
        return self.down(self.activation(self.up(x)))


class GatedMLP(AbstractStatelessMixer):
    r"""A mixer without a state: $W_{down} (\phi(W_{gate} x) \odot W_{up} x)$ (arXiv 2002.05202).

    With `multipliers` $m$, it is $m_2 W_{down} (\phi(m_1 W_{gate} x) \odot W_{up} x)$.
    """

    gate: Linear
    up: Linear
    down: Annotated[Linear, ArrayKind.PROJECTION_OUT]
    activation: Callable[[Array], Array] = eqx.field(static=True)
    multipliers: tuple[float, ...] | None = eqx.field(static=True)

    @checks_arguments
    def __init__(
        self,
        width: int,
        *,
        intermediate_size: int,
        activation: str | Callable[[Array], Array] = "silu",
        use_bias: bool = False,
        multipliers: Sequence[float] | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise the three projections. The default `activation` gives SwiGLU.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `intermediate_size`: the width of the hidden layer.
        - `activation`: $\\phi$, as for `ssmkit.activation_of`: a name, or your own function.
        - `use_bias`, `dtype`: whether the three projections have a bias, and their dtype.
        - `multipliers`: constant factors of what $W_{gate}$ gives and of the output; `None` for none.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` naming the argument that is out of range.
        """
        if multipliers is not None and (len(multipliers) != 2 or not all(map(math.isfinite, multipliers))):
            raise ValueError(
                "GatedMLP: `multipliers` must be 2 finite numbers, for the gate and the output, got "
                f"{shown(multipliers)}."
            )
        self.activation = activation_of(activation)
        self.multipliers = None if multipliers is None else tuple(map(float, multipliers))
        gate_key, up_key, down_key = jax.random.split(key, 3)
        self.gate = Linear(width, intermediate_size, use_bias=use_bias, dtype=dtype, key=gate_key)
        self.up = Linear(width, intermediate_size, use_bias=use_bias, dtype=dtype, key=up_key)
        self.down = Linear(intermediate_size, width, use_bias=use_bias, dtype=dtype, key=down_key)

    def each(self, x: Float[Array, "*time width"]) -> Float[Array, "*time width"]:
        """As `AbstractStatelessMixer.each`."""
        if self.multipliers is None:
            return self.down(self.activation(self.gate(x)) * self.up(x))
        gate, out = self.multipliers
        return out * self.down(self.activation(gate * self.gate(x)) * self.up(x))
