"""An operator that returns the previous token's features, with the last token as state."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._construction import check_shape
from .._extent import CheckedExtent, Extent, extent_of
from .._sharding import sharded_by_xla
from .._slices import Exchange, in_slices
from .._types import Valid, check_valid, checks_itself
from ._checks import check_state, many_tokens, one_token
from ._operator import AbstractSequenceOperator
from ._windows import windows


@checks_itself
class Shift(AbstractSequenceOperator[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]):
    r"""A shift by one token, $y_t = x_{t-1}$ with $x_{-1} = 0$: RWKV's token shift, or half of a trapezoidal rule.

    The state is the last token's $x$, float32.

    **Arguments:**

    - `shape`: the shape of one token's features.
    """

    shape: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        check_shape(shape=self.shape)

    def init_state(self) -> Float[Array, "..."]:
        """The state before the first token: zeros."""
        return jnp.zeros(self.shape, jnp.float32)

    @sharded_by_xla
    @checks_itself
    def chunk_scan(
        self, inputs: Float[Array, "time ..."], state: Float[Array, "..."], extent: Extent = Extent()
    ) -> tuple[Float[Array, "time ..."], Float[Array, "..."]]:
        """As `AbstractSequenceOperator.chunk_scan`."""
        (inputs,), state = many_tokens(self, self.shape, {"inputs": inputs}), check_state(self, state, self.shape)
        return in_slices(_scan, None, inputs, state, extent_of(extent, inputs.shape[0]))

    @sharded_by_xla
    @checks_itself
    def step(
        self, inputs: Float[Array, "..."], state: Float[Array, "..."], *, valid: Valid | None = None
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """As `AbstractSequenceOperator.step`."""
        (inputs,), state = one_token(self, self.shape, {"inputs": inputs}), check_state(self, state, self.shape)
        new = inputs.astype(state.dtype)
        return state, new if valid is None else jnp.where(check_valid(valid), new, state)


def _scan(
    _: None, inputs: Float[Array, "time ..."], state: Float[Array, "..."], extent: CheckedExtent, exchange: Exchange
) -> tuple[Float[Array, "time ..."], Float[Array, "..."]]:
    """`chunk_scan` over a slice of the tokens."""
    past, window = windows(inputs.astype(state.dtype), state[None], extent, exchange)
    return past.before(1, inputs.shape[0]), window[0]
