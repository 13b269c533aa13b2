"""The channel mixing of RWKV-6 "Finch" (arXiv 2404.05892)."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._projections import projection
from ._rwkv6 import depth, lerp_weights


class RWKV6ChannelMixer(ssmkit.AbstractRecurrentMixer[Float[Array, " width"]]):
    r"""The channel mixing of RWKV-6 (arXiv 2404.05892, section 4), which also sees the previous token.

    With $\delta_t = x_{t-1} - x_t$, $x^k = x + \delta \odot \mu_k$ and $x^r = x + \delta \odot \mu_r$,

    $$y = \sigma(W_r x^r) \odot W_v \operatorname{relu}(W_k x^k)^2.$$

    The cache is the last token's features.
    """

    mu_k: Float[Array, " width"]
    mu_r: Float[Array, " width"]
    shift: ssmkit.Shift
    k_proj: ssmkit.Linear
    r_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.SHARED]
    v_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        intermediate_size: int | None = None,
        layer_idx: int = 0,
        num_hidden_layers: int = 1,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise as the authors' code, by the depth of the layer; $W_r$ and $W_v$ start at zero.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `intermediate_size`: the width of the hidden layer; when `None`, 3.5 times `width`, rounded up to a multiple
            of 32 as in flash-linear-attention.
        - `layer_idx`, `num_hidden_layers`: as `RWKV6Mixer`.
        - `dtype`: the dtype of the projections.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` when a size is out of range.
        """
        hidden = -(-7 * width // 64) * 32 if intermediate_size is None else intermediate_size
        _, after = depth("RWKV6ChannelMixer", layer_idx, num_hidden_layers)
        zeros = jax.nn.initializers.zeros
        self.mu_k = lerp_weights(width, after)
        self.mu_r = lerp_weights(width, after)
        self.shift = ssmkit.Shift((width,))
        self.k_proj = projection(width, hidden, jax.nn.initializers.orthogonal(1.0), dtype=dtype, key=key)
        self.r_proj = projection(width, width, zeros, dtype=dtype, key=key)
        self.v_proj = projection(hidden, width, zeros, dtype=dtype, key=key)

    def init_cache(self) -> Float[Array, " width"]:
        """Zero features of the previous token, in float32."""
        return self.shift.init_state()

    def mix(
        self, x: Float[Array, "*time width"], cache: Float[Array, " width"], advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], Float[Array, " width"]]:
        """The equations of the class, for many tokens or for one."""
        previous, cache = advance(self.shift, x, cache)
        x = x.astype(previous.dtype)
        delta = previous - x
        x_k, x_r = (x + delta * jnp.broadcast_to(mu, x.shape) for mu in (self.mu_k, self.mu_r))
        hidden = jnp.square(jax.nn.relu(self.k_proj(x_k)))
        return jax.nn.sigmoid(self.r_proj(x_r)) * self.v_proj(hidden), cache
