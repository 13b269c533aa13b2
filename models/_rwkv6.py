"""Parts of RWKV-6: token mixing with data-dependent shares, and initial values that depend on the depth."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._projections import projection, with_weight


class DataDependentLerp(eqx.Module):
    r"""Five mixtures of a token with the previous token (arXiv 2404.05892, section 4.2).

    With $\delta_t = x_{t-1} - x_t$ and for $j$ in $r, w, k, v, g$, the order of flash-linear-attention,

    $$x^j = x + \delta \odot (\mu_j + W^2_j \tanh(W^1_j (x + \delta \odot \mu_x))).$$
    """

    mu_x: Float[Array, " width"]
    mu: Float[Array, "5 width"]
    down: Annotated[ssmkit.Linear, ssmkit.ArrayKind.SHARED]
    up: Annotated[ssmkit.BlockDiagonalLinear, ssmkit.ArrayKind.SHARED]

    def __init__(
        self, width: int, rank: int, before: float, after: float, *, dtype: DTypeLike = jnp.float32, key: PRNGKeyArray
    ):
        """Initialise $W^1$ to zero, so that the shares $\\mu$ do not depend on the data at first.

        **Arguments:**

        - `width`, `rank`: the width of $x$, and the rank of each $W^1_j$.
        - `before`, `after`: the results of `depth`.
        - `dtype`: the dtype of $W^1$ and $W^2$; the rest is float32.
        - `key`: the key for the initialisation.
        """
        early, late = lerp_weights(width, after), lerp_weights(width, 0.5 * after)
        self.mu_x = early
        self.mu = jnp.stack([late, early, early, early - 0.3 * before, late])
        self.down = projection(width, 5 * rank, jax.nn.initializers.zeros, dtype=dtype, key=key)
        up = ssmkit.BlockDiagonalLinear(5 * rank, 5 * width, 5, dtype=dtype, key=key)
        self.up = with_weight(up, small_uniform(key, up.weight.shape))

    def __call__(
        self, x: Float[Array, "*time width"], previous: Float[Array, "*time width"]
    ) -> tuple[Float[Array, "*time width"], ...]:
        """The five mixtures, for many tokens or for one."""
        delta = previous - x
        low = jnp.tanh(self.down(x + delta * jnp.broadcast_to(self.mu_x, x.shape)))
        dynamic = jnp.reshape(self.up(low), (*x.shape[:-1], 5, -1))
        share = jnp.broadcast_to(self.mu, dynamic.shape) + dynamic
        return tuple(jnp.unstack(x[..., None, :] + delta[..., None, :] * share, axis=-2))


def depth(name: str, layer_idx: int, num_hidden_layers: int) -> tuple[float, float]:
    """The share of earlier layers among the other layers, and the share of this and later layers among all layers.

    **Raises:** `ValueError`, on behalf of the class `name`, when there is no such layer.
    """
    if not 0 <= layer_idx < num_hidden_layers:
        raise ValueError(f"{name}: `layer_idx` must lie in [0, {num_hidden_layers}), got {layer_idx}.")
    return layer_idx / max(num_hidden_layers - 1, 1), 1.0 - layer_idx / num_hidden_layers


def lerp_weights(width: int, exponent: float) -> Float[Array, " width"]:
    """The initial share of the previous token in each channel: it falls from 1 in the first to nearly 0 in the last."""
    return 1.0 - (jnp.arange(width, dtype=jnp.float32) / width) ** exponent


def initial_decay(heads: int, key: int, before: float) -> Float[Array, "heads key"]:
    """The initial decay: values from -6 to -1 over all channels. Deeper layers have more slow channels."""
    return jnp.reshape(5.0 * _place(heads * key) ** (0.7 + 1.3 * before) - 6.0, (heads, key))


def initial_bonus(heads: int, key: int, before: float) -> Float[Array, "heads key"]:
    """The initial bonus: it falls over all channels in deep layers, with a zigzag of three."""
    zigzag = 0.1 * ((jnp.arange(heads * key, dtype=jnp.float32) + 1.0) % 3.0 - 1.0)
    return jnp.reshape(before * (1.0 - _place(heads * key)) + zigzag, (heads, key))


def small_uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """An initialiser in the form of `jax.nn.initializers`, uniform in [-0.01, 0.01)."""
    return jax.random.uniform(key, shape, dtype, -0.01, 0.01)


def _place(channels: int) -> Float[Array, " channel"]:
    return jnp.arange(channels, dtype=jnp.float32) / max(channels - 1, 1)
