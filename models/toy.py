"""A toy SSM: the least one writes to have a language model with a constant-size cache."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

import ssmkit


class ToyRecurrence(ssmkit.DiagonalChunkedRecurrence[Float[Array, "heads features"]]):
    r"""$S_t = \sigma(f_t) S_{t-1} + k_t v_t^\top$, $y_t = S_t^\top q_t$: linear attention with one decay per head."""

    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def coefficients(self, inputs: Float[Array, "heads features"]) -> ssmkit.Coefficients:
        """One token: q, k, v and the forget gate of every head."""
        dim = self.state_shape[1]
        q, k, v, forget = jnp.split(inputs, [dim, 2 * dim, 3 * dim], axis=-1)
        return ssmkit.Coefficients(log_decay=jax.nn.log_sigmoid(forget + 4.0), write=k / dim, value=v, read=q)


class ToyMixer(ssmkit.AbstractRecurrentMixer[Float[Array, "heads key value"]]):
    """Projection, recurrence, projection."""

    in_proj: ssmkit.Linear
    recurrence: ToyRecurrence
    out_proj: ssmkit.Linear

    def init_cache(self):
        """The recurrence's state is all there is to remember."""
        return self.recurrence.init_state()

    def mix(self, x, cache, advance):
        """Many tokens or one."""
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
        """`width` must be a multiple of `heads`; the head is tied."""
        if width % heads != 0:
            raise ValueError(f"`width` must be a multiple of the {heads} heads, got {width}.")
        dim = width // heads
        self.vocab_size = vocab_size
        self.embedding = ssmkit.Embedding(vocab_size, width, key=key)
        self.blocks = tuple(
            ssmkit.ResidualBlock(
                ssmkit.RMSNorm(width),
                ToyMixer(
                    in_proj=ssmkit.Linear(width, heads * (3 * dim + 1), key=jax.random.fold_in(key, 2 * layer)),
                    recurrence=ToyRecurrence(state_shape=(heads, dim, dim)),
                    out_proj=ssmkit.Linear(width, width, key=jax.random.fold_in(key, 2 * layer + 1)),
                ),
            )
            for layer in range(layers)
        )
        self.norm = ssmkit.RMSNorm(width)
        self.head = None
