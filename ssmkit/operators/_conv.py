"""Causal depthwise convolution, with its window as state."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from .._construction import check_dtype, check_one_key, check_sizes, check_switches
from .._extent import CheckedExtent, Extent, extent_of
from .._sharding import sharded_by_xla
from .._slices import Exchange, in_slices
from .._types import PRNGKeyArray, Valid, check_valid, checks_itself
from ..layers._apart import Apart, whole
from ..layers._linear import Part, along_last, by_sizes, check_parts
from ._checks import check_state, many_tokens, one_token
from ._operator import AbstractSequenceOperator
from ._windows import windows


class CausalConv1d(
    AbstractSequenceOperator[
        Float[Array, "*time channel"], Float[Array, "*time channel"], Float[Array, "window channel"]
    ]
):
    r"""A causal convolution, $y_t = b + \sum_{j=0}^{K-1} w_j \, x_{t-K+1+j}$ in each channel, computed in float32.

    The state is the window of the last $K - 1$ inputs, shape `(K - 1, channel)`, float32.
    """

    weight: Float[Array, "channel kernel"]
    bias: Float[Array, " channel"] | None
    parts: tuple[Part, ...] = eqx.field(static=True)

    @checks_itself
    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        use_bias: bool = True,
        parts: Sequence[Part] = (),
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise uniformly in $\\pm 1/\\sqrt{K}$, as PyTorch's `Conv1d` with one channel per group.

        **Arguments:**

        - `channels`: the number of independent channels.
        - `kernel_size`: $K$, at least 1.
        - `use_bias`: whether $b$ exists.
        - `parts`: the features whose channels these are, in order, if they are several; see `ssmkit.Linear`.
        - `dtype`: the dtype of the parameters.
        - `key`: the key for the initialisation.

        **Raises:** as `ssmkit.Linear`.
        """
        check_sizes(channels=channels, kernel_size=kernel_size)
        check_switches(use_bias=use_bias)
        check_parts(parts, channels)
        check_dtype(dtype)
        check_one_key(key)
        bound = kernel_size**-0.5
        weight_key, bias_key = jax.random.split(key)
        self.weight = jax.random.uniform(weight_key, (channels, kernel_size), dtype, -bound, bound)
        self.bias = jax.random.uniform(bias_key, (channels,), dtype, -bound, bound) if use_bias else None
        self.parts = tuple(parts)

    def init_state(self) -> Float[Array, "window channel"]:
        """The state before the first token: zeros."""
        channels, kernel_size = self.weight.shape
        return jnp.zeros((kernel_size - 1, channels), jnp.float32)

    @sharded_by_xla
    @checks_itself
    def chunk_scan(
        self,
        inputs: Float[Array, "time channel"],
        state: Float[Array, "window channel"],
        extent: Extent = Extent(),
    ) -> tuple[Float[Array, "time channel"], Float[Array, "window channel"]]:
        """As `AbstractSequenceOperator.chunk_scan`."""
        (inputs,), state = many_tokens(self, self._token, {"inputs": inputs}), self._checked(state)
        return in_slices(_scan, self, inputs, state, extent_of(extent, inputs.shape[0]))

    @sharded_by_xla
    @checks_itself
    def step(
        self, inputs: Float[Array, " channel"], state: Float[Array, "window channel"], *, valid: Valid | None = None
    ) -> tuple[Float[Array, " channel"], Float[Array, "window channel"]]:
        """As `AbstractSequenceOperator.step`."""
        (inputs,), state = one_token(self, self._token, {"inputs": inputs}), self._checked(state)
        extended = jnp.concatenate([state, inputs.astype(state.dtype)[None]])
        taps = [tap * extended[j] for j, tap in enumerate(self._taps(state.dtype))]
        window = extended[1:] if valid is None else jnp.where(check_valid(valid), extended[1:], state)
        return self._sum(taps), window

    @property
    def _token(self) -> tuple[int]:
        return (self.weight.shape[0],)

    def _checked(self, state: Any) -> Float[Array, "window channel"]:
        channels, kernel_size = self.weight.shape
        return check_state(self, state, (kernel_size - 1, channels), axes="(window, channel)")

    def _taps(self, dtype: DTypeLike) -> list[Float[Array, " channel"]]:
        """The columns of the weight. It is not transposed, which would copy it for every tap of every `step`."""
        weight = self.weight.astype(dtype)
        return [weight[:, j] for j in range(weight.shape[1])]

    def _sum(self, taps: list[Array]) -> Float[Array, "*time channel"]:
        outputs = functools.reduce(jnp.add, taps)
        return outputs if self.bias is None else outputs + along_last(self.bias, outputs)


def _scan(
    conv: CausalConv1d,
    inputs: Float[Array, "time channel"],
    state: Float[Array, "window channel"],
    extent: CheckedExtent,
    exchange: Exchange,
) -> tuple[Float[Array, "time channel"], Float[Array, "window channel"]]:
    """`chunk_scan` over a slice of the tokens."""
    time, taps = inputs.shape[0], conv._taps(state.dtype)
    past, window = windows(inputs.astype(state.dtype), state, extent, exchange)
    return conv._sum([tap[None] * past.before(len(taps) - 1 - j, time) for j, tap in enumerate(taps)]), window


def convolve_parts(
    conv: CausalConv1d | Apart,
    features: Sequence[Float[Array, "*time _"]],
    window: Any,
    advance: Callable[[AbstractSequenceOperator, Any, Any], tuple[Any, Any]],
    activation: Callable[[Array], Array] = lambda x: x,
) -> tuple[tuple[Float[Array, "*time _"], ...], Any]:
    """Run a convolution over several features of the same tokens, by one operation on one device.

    **Arguments:**

    - `conv`: the convolution over the concatenated channels of all features, which are its `parts`. On a mesh with an
        axis `model`, `ssmkit.shard` holds one for each of the features in its place.
    - `features`: several arrays of the same tokens, or of one.
    - `window`: the state of `conv`.
    - `advance`: as in `ssmkit.AbstractRecurrentMixer.mix`.
    - `activation`: an elementwise function, applied after the convolution.

    **Returns:** a convolved array for each of the features, and the new window.
    """
    if isinstance(conv, Apart):
        runs = [advance(whole(one), x, own) for one, x, own in zip(conv.layers, features, window, strict=True)]
        return tuple(activation(y) for y, _ in runs), tuple(after for _, after in runs)
    y, window = advance(conv, jnp.concatenate(features, axis=-1), window)
    return by_sizes(activation(y), [x.shape[-1] for x in features]), window
