"""A toy SSM: the shortest code for a language model with a constant-size cache."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

import ssmkit


class ToyRecurrence(ssmkit.DiagonalChunkedRecurrence[Float[Array, "heads features"]]):
    r"""$S_t = \sigma(f_t) S_{t-1} + k_t v_t^\top$, $y_t = S_t^\top q_t$: linear attention with one decay per head."""

    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def coefficients(self, inputs: Float[Array, "heads features"]) -> ssmkit.Coefficients:
        """The coefficients of one token, from q, k, v and the forget gate of every head."""
        dim = self.state_shape[1]
        q, k, v, forget = jnp.split(inputs, [dim, 2 * dim, 3 * dim], axis=-1)
        return ssmkit.Coefficients(log_decay=jax.nn.log_sigmoid(forget + 4.0), write=k / dim, value=v, read=q)


class ToyMixer(ssmkit.AbstractRecurrentMixer[Float[Array, "heads key value"]]):
    """A mixer of projection, recurrence and projection."""

    in_proj: ssmkit.Linear
    recurrence: ToyRecurrence
    out_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]

    @ssmkit.checks_arguments
    def __init__(self, width: int, *, num_heads: int = 4, chunk_size: int | None = None, key: PRNGKeyArray):
        """Initialise the mixer; `width` must be a multiple of `num_heads`."""
        if width % num_heads != 0:
            raise ValueError(f"`width` must be a multiple of the {num_heads} heads, got {width}.")
        dim, (in_key, out_key) = width // num_heads, jax.random.split(key)
        self.in_proj = ssmkit.Linear(width, num_heads * (3 * dim + 1), key=in_key)
        self.recurrence = ToyRecurrence(state_shape=(num_heads, dim, dim), chunk_size=chunk_size)
        self.out_proj = ssmkit.Linear(width, width, key=out_key)

    def init_cache(self):
        """The cache is the state of the recurrence."""
        return self.recurrence.init_state()

    def mix(self, x, cache, advance):
        """Project, run the recurrence and project back, for many tokens or for one."""
        heads, _, dim = self.recurrence.state_shape
        features = jnp.reshape(self.in_proj(x), (*x.shape[:-1], heads, 3 * dim + 1))
        y, cache = advance(self.recurrence, features, cache)
        return self.out_proj(jnp.reshape(y, (*x.shape[:-1], heads * dim))), cache


class ToySSM(ssmkit.AbstractResidualLanguageModel[Float[Array, "heads key value"]]):
    """The toy mixer in the generic language model."""

    vocab_size: int = eqx.field(static=True)
    embedding: ssmkit.Embedding
    blocks: tuple[ssmkit.ResidualBlock, ...]
    norm: ssmkit.RMSNorm
    head: None

    def __init__(self, vocab_size: int, width: int = 64, layers: int = 2, heads: int = 4, *, key: PRNGKeyArray):
        """Initialise the model; `width` must be a multiple of `heads`, and the head is tied."""
        mixers = [ToyMixer(width, num_heads=heads, key=jax.random.fold_in(key, layer)) for layer in range(layers)]
        self.vocab_size = vocab_size
        self.embedding = ssmkit.Embedding(vocab_size, width, key=key)
        self.blocks = tuple(ssmkit.ResidualBlock(ssmkit.RMSNorm(width), mixer) for mixer in mixers)
        self.norm = ssmkit.RMSNorm(width)
        self.head = None
