"""The language model of HGRN2 (arXiv 2404.07904), whose layers learn their lower bounds together."""

from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from .hgrn2 import HGRN2Mixer


class HGRN2(ssmkit.AbstractResidualLanguageModel[Any]):
    r"""HGRN2 mixers and gated MLPs in turn, with lower bounds that grow with depth (arXiv 2404.07904, section 2.2).

    A parameter $\Gamma$ has a row for each of $L$ layers and a column for each channel. The bound of layer
    $l = 0, 1, \dots$ is

    $$\ell_l = \sum_{j = 1}^{l} \operatorname{softmax}_{layers}(\Gamma)_j,$$

    which is 0 in the first layer and below 1 in the last. All layers are one trace.
    """

    vocab_size: int = eqx.field(static=True)
    embedding: ssmkit.Embedding
    lower_bounds: Float[Array, "layers channels"] | None
    layers: tuple[ssmkit.ResidualBlock[Any], ...]
    norm: ssmkit.RMSNorm
    head: Annotated[ssmkit.Linear, ssmkit.ArrayKind.HEAD] | None

    @ssmkit.checks_arguments
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_hidden_layers: int,
        *,
        state_size: int = 128,
        num_heads: int | None = None,
        use_lower_bound: bool = True,
        use_short_conv: bool = False,
        conv_kernel: int = 4,
        hidden_ratio: int = 4,
        intermediate_size: int | None = None,
        norm_eps: float = 1e-6,
        tie_word_embeddings: bool = False,
        chunk_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise the model. Layer `l` starts with the lower bound `l / num_hidden_layers` in every channel.

        **Arguments:** the names are those of flash-linear-attention.

        - `vocab_size`: ids that can be produced.
        - `hidden_size`: width of the residual stream.
        - `num_hidden_layers`: pairs of a mixer and an MLP.
        - `state_size`, `num_heads`, `use_short_conv`, `conv_kernel`, `chunk_size`: as `HGRN2Mixer`.
        - `use_lower_bound`: whether there are lower bounds.
        - `hidden_ratio`, `intermediate_size`: the width of an MLP's hidden layer. If `intermediate_size` is `None`, it
            is two thirds of `hidden_ratio * hidden_size`, rounded up to a multiple of 256.
        - `norm_eps`: the epsilon of every norm.
        - `tie_word_embeddings`: whether the head is the embedding.
        - `dtype`: the dtype of the projections, convolutions and the embedding; the rest stays float32.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` when a size is out of range.
        """
        width = hidden_size
        hidden = -(-int(width * hidden_ratio * 2 / 3) // 256) * 256 if intermediate_size is None else intermediate_size
        embedding_key, head_key, *keys = jax.random.split(key, 2 + 2 * num_hidden_layers)

        def block(mixer: ssmkit.AbstractMixer[Any]) -> ssmkit.ResidualBlock[Any]:
            return ssmkit.ResidualBlock(norm=ssmkit.RMSNorm(width, eps=norm_eps), mixer=mixer)

        def mixer(key: PRNGKeyArray) -> HGRN2Mixer:
            return HGRN2Mixer(
                width,
                state_size=state_size,
                num_heads=num_heads,
                use_short_conv=use_short_conv,
                conv_kernel=conv_kernel,
                norm_eps=norm_eps,
                chunk_size=chunk_size,
                dtype=dtype,
                key=key,
            )

        pairs = [
            (block(mixer(first)), block(ssmkit.GatedMLP(width, intermediate_size=hidden, dtype=dtype, key=second)))
            for first, second in zip(keys[::2], keys[1::2], strict=True)
        ]
        self.vocab_size = vocab_size
        self.embedding = ssmkit.Embedding(vocab_size, width, dtype=dtype, key=embedding_key)
        self.layers = tuple(block for pair in pairs for block in pair)
        heads, channels, _ = self.layers[0].mixer.recurrence.state_shape  # pyright: ignore[reportAttributeAccessIssue]
        bounds = jnp.zeros((num_hidden_layers, heads * channels), jnp.float32)
        self.lower_bounds = bounds if use_lower_bound else None
        self.norm = ssmkit.RMSNorm(width, eps=norm_eps)
        self.head = None if tie_word_embeddings else ssmkit.Linear(width, vocab_size, dtype=dtype, key=head_key)

    @property
    def blocks(self) -> tuple[ssmkit.ResidualBlock[Any], ...]:
        """The layers, with the lower bound set in every mixer."""
        if self.lower_bounds is None:
            return self.layers
        shares = jax.nn.softmax(self.lower_bounds, axis=0)
        bounds = jnp.concatenate([jnp.zeros_like(shares[:1]), jnp.cumsum(shares[1:], axis=0)])
        return tuple(
            _bounded(layer, bounds[i // 2]) if isinstance(layer.mixer, HGRN2Mixer) else layer
            for i, layer in enumerate(self.layers)
        )


def _bounded(layer: ssmkit.ResidualBlock[Any], bound: Float[Array, " channels"]) -> ssmkit.ResidualBlock[Any]:
    shape = layer.mixer.recurrence.state_shape[:2]  # pyright: ignore[reportAttributeAccessIssue]
    where = lambda layer: layer.mixer.recurrence.lower_bound
    return eqx.tree_at(where, layer, jnp.reshape(bound, shape), is_leaf=lambda leaf: leaf is None)
