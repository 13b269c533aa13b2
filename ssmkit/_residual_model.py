"""Language models that are a stack of residual blocks, with mixers of one kind or of several."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from ._construction import check_one_key, check_sizes, check_switches, positive
from ._extent import CheckedExtent, Extent, extent_of
from ._final import refuse_overrides
from ._ids import read_sequence
from ._language_model import AbstractLanguageModel
from ._sharding import over_sequence, sharded_by_xla
from ._slices import at_token
from ._types import (
    Length,
    Logits,
    PRNGKeyArray,
    Token,
    Tokens,
    Valid,
    at_least_float32,
    checks_itself,
    shown,
)
from .layers._array_kinds import ArrayKind
from .layers._dropout import with_keys
from .layers._linear import Embedding, Linear
from .layers._matrix import project
from .layers._norms import Norm, RMSNorm
from .mixers._blocks import init_caches, prefill_all, reserve_all, step_all
from .mixers._fits import check_mixers
from .mixers._mixer import AbstractBlock, AbstractMixer, Cache, ResidualBlock


class AbstractResidualLanguageModel(AbstractLanguageModel[tuple[Cache, ...]]):
    r"""A language model of embedding, residual blocks, final norm and (tied) head, generic over the blocks' cache.

    A model names its fields and builds them in `__init__`; everything else is final. The cache is the blocks' caches.

    Blocks are mixers that map the residual stream to itself, residual sum included, as `ssmkit.ResidualBlock` does.

    Any model may set four options, which do nothing by default. `embedding_multiplier` scales the embedding.
    `embedding_norm` normalises the embedding. `logit_multiplier` scales the logits. With `final_logit_softcapping` $c$
    the logits are then $c \tanh(z / c)$.
    """

    embedding: eqx.AbstractVar[Embedding]
    blocks: eqx.AbstractVar[tuple[AbstractMixer[Cache], ...]]
    norm: eqx.AbstractVar[Norm]
    head: eqx.AbstractVar[Linear | None]
    embedding_multiplier: float = eqx.field(static=True, default=1.0, kw_only=True)
    embedding_norm: Norm | None = eqx.field(default=None, kw_only=True)
    logit_multiplier: float = eqx.field(static=True, default=1.0, kw_only=True)
    final_logit_softcapping: float | None = eqx.field(static=True, default=None, kw_only=True)

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        refuse_overrides(cls, AbstractResidualLanguageModel, "write an `ssmkit.AbstractMixer` for its blocks instead.")

    def init_cache(self) -> tuple[Cache, ...]:
        """The blocks' empty caches."""
        return init_caches(self.blocks)

    def reserve(self, cache: tuple[Cache, ...], tokens: int) -> tuple[Cache, ...]:
        """As `AbstractLanguageModel.reserve`: room in every block's cache."""
        return reserve_all(self.blocks, cache, tokens)

    @sharded_by_xla
    @checks_itself
    def prefill(
        self,
        tokens: Tokens,
        cache: tuple[Cache, ...],
        extent: Extent = Extent(),
        *,
        length: Length | None = None,
    ) -> tuple[Logits, tuple[Cache, ...]]:
        """As `AbstractLanguageModel.prefill`; `length=n` is short for `Extent(length=n)`."""
        tokens = read_sequence(tokens, "time")
        extent, time = _one_extent(extent, length, tokens.shape[0]), tokens.shape[0]
        x, cache = prefill_all(self.blocks, self._embedded(tokens), cache, extent)
        last = time - 1 if extent.length is None else jnp.maximum(extent.length, 1) - 1
        return self._logits(self.norm(at_token(x, last))), cache

    @sharded_by_xla
    @checks_itself
    def step(
        self, token: Token, cache: tuple[Cache, ...], valid: Valid | None = None
    ) -> tuple[Logits, tuple[Cache, ...]]:
        """As `AbstractLanguageModel.step`."""
        token = read_sequence(token)
        x, cache = step_all(self.blocks, self._embed(token), cache, valid)
        return self._logits(self.norm(x)), cache

    @sharded_by_xla
    @checks_itself
    def forward(
        self,
        tokens: Tokens,
        cache: tuple[Cache, ...],
        extent: Extent = Extent(),
        *,
        length: Length | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "time vocab"], tuple[Cache, ...]]:
        """As `AbstractLanguageModel.forward`; `length=n` is short for `Extent(length=n)`.

        With a `key`, every `ssmkit.Dropout` in the embedding and the blocks drops features.
        """
        x, cache = self._features(tokens, cache, extent, length, key)
        return self._logits(x), cache

    @sharded_by_xla
    @checks_itself
    def features(
        self,
        tokens: Tokens,
        cache: tuple[Cache, ...] | None = None,
        extent: Extent = Extent(),
        *,
        length: Length | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "time width"], tuple[Cache, ...]]:
        """The output of the final norm after every token, from which the head computes logits. It serves probes.

        **Arguments:** as for `forward`; without a cache, from the empty cache.

        **Returns:** features, and the cache after the last token that counts.
        """
        cache = self.reserve(self.init_cache(), jnp.size(tokens)) if cache is None else cache
        return self._features(tokens, cache, extent, length, key)

    def _features(
        self, tokens: Any, cache: Any, extent: Extent, length: Length | None, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "time width"], tuple[Cache, ...]]:
        tokens = read_sequence(tokens, "time")
        extent = _one_extent(extent, length, tokens.shape[0])
        model = with_keys(self, key)
        x, cache = prefill_all(model.blocks, model._embedded(tokens), cache, extent)
        return self.norm(x), cache

    def _embedded(self, tokens: Tokens) -> Float[Array, "time width"]:
        return over_sequence(self._embed(over_sequence(tokens, axis=0)), axis=0)

    def _embed(self, tokens: Int[Array, "*time"]) -> Float[Array, "*time width"]:
        x = self.embedding(tokens)
        if self.embedding_multiplier != 1.0:
            x = self.embedding_multiplier * x.astype(at_least_float32(x.dtype))
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def _logits(self, x: Float[Array, "*time width"]) -> Float[Array, "*time vocab"]:
        weight = self.embedding.weight if self.head is None else self.head.weight
        logits, cap = project(weight, x)[..., : self.vocab_size], self.final_logit_softcapping
        logits = logits if self.logit_multiplier == 1.0 else self.logit_multiplier * logits
        return logits if cap is None else cap * jnp.tanh(logits / cap)


class LanguageModel(AbstractResidualLanguageModel[Any]):
    """A language model built from any mixers, each in a pre-normalised residual branch, and from any blocks.

        mixers = [GLAMixer(256, key=key_0), ssmkit.GatedMLP(256, intermediate_size=683, key=key_1)]
        model = ssmkit.LanguageModel(vocab_size=50257, width=256, mixers=mixers, key=key)

    Mixers may be of different kinds; each has its own cache. To save a model, describe it by a
    `ssmkit.LanguageModelConfig` instead, and build it with `ssmkit.build`.
    """

    vocab_size: int = eqx.field(static=True)
    embedding: Embedding
    blocks: tuple[AbstractBlock[Any], ...]
    norm: Norm
    head: Annotated[Linear, ArrayKind.HEAD] | None
    config: Any = eqx.field(static=True)

    @checks_itself
    def __init__(
        self,
        vocab_size: int,
        width: int,
        mixers: Sequence[AbstractMixer[Any]],
        *,
        norm: Callable[[int], Norm] = RMSNorm,
        tie_word_embeddings: bool = False,
        pad_vocab_size_multiple: int = 1,
        residual_multiplier: float | int = 1.0,
        residual_in_fp32: bool = True,
        post_norm: Callable[[int], Norm] | None = None,
        embedding_multiplier: float | int = 1.0,
        embedding_norm: Callable[[int], Norm] | None = None,
        logit_multiplier: float | int = 1.0,
        final_logit_softcapping: float | int | None = None,
        config: Any = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        r"""Initialise everything except the mixers at random.

        **Arguments:**

        - `vocab_size`: the number of ids that can be produced.
        - `width`: the width of the residual stream; every mixer maps this width to itself.
        - `mixers`: the layers, first to last. An `ssmkit.AbstractBlock` is used unchanged; any other mixer is put into
            an `ssmkit.ResidualBlock`.
        - `norm`: makes a norm of a given width, before every mixer and before the head.
        - `tie_word_embeddings`: whether the head is the embedding.
        - `pad_vocab_size_multiple`: rows of the embedding and the head are a multiple of this; padding rows are never
            produced.
        - `residual_multiplier`: scales the output of every mixer before it is added to the residual stream.
        - `residual_in_fp32`: whether the residual stream stays float32 when weights are narrower.
        - `post_norm`: makes a norm of the output of every mixer, in addition to the norm before the mixer.
        - `embedding_multiplier`: scales the embedding.
        - `embedding_norm`: makes a norm between the embedding and the first mixer.
        - `logit_multiplier`: scales the logits.
        - `final_logit_softcapping`: $c$; logits $z$ become $c \tanh(z / c)$.
        - `config`: the configuration of the model, stored as `model.config`; `ssmkit.build` passes it.
        - `dtype`: the dtype of the embedding and the head.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` or `TypeError` naming the argument that does not fit, which may be a mixer. Each mixer
        is traced with one token, which computes nothing.
        """
        check_sizes(vocab_size=vocab_size, width=width, pad_vocab_size_multiple=pad_vocab_size_multiple)
        check_switches(tie_word_embeddings=tie_word_embeddings, residual_in_fp32=residual_in_fp32)
        if not isinstance(mixers, Sequence):
            raise TypeError(f"`mixers` must be a list of mixers, got {type(mixers).__name__}.")
        for i, mixer in enumerate(mixers):
            if not isinstance(mixer, AbstractMixer):
                raise TypeError(f"`mixers[{i}]` must be an `ssmkit.AbstractMixer`, got {type(mixer).__name__}.")
        for name, make in (("norm", norm), ("embedding_norm", embedding_norm), ("post_norm", post_norm)):
            if isinstance(make, Norm) or not (callable(make) or (make is None and name != "norm")):
                what = "a norm" if isinstance(make, Norm) else shown(make)
                raise TypeError(
                    f"`{name}` must make a norm of a given width, such as `ssmkit.RMSNorm` itself; got {what}."
                )
        check_one_key(key)
        check_mixers(mixers, width)
        embedding_key, head_key = jax.random.split(key)
        self.vocab_size = vocab_size
        rows = -(-vocab_size // pad_vocab_size_multiple) * pad_vocab_size_multiple
        self.embedding = Embedding(rows, width, dtype=dtype, key=embedding_key)
        self.blocks = tuple(
            mixer
            if isinstance(mixer, AbstractBlock)
            else ResidualBlock(
                norm=norm(width),
                mixer=mixer,
                residual_in_fp32=residual_in_fp32,
                multiplier=positive("residual_multiplier", residual_multiplier),
                post_norm=None if post_norm is None else post_norm(width),
            )
            for mixer in mixers
        )
        self.norm = norm(width)
        self.head = None if tie_word_embeddings else Linear(width, rows, dtype=dtype, key=head_key)
        self.embedding_multiplier = positive("embedding_multiplier", embedding_multiplier)
        self.embedding_norm = None if embedding_norm is None else embedding_norm(width)
        self.logit_multiplier = positive("logit_multiplier", logit_multiplier)
        cap = final_logit_softcapping
        self.final_logit_softcapping = None if cap is None else positive("final_logit_softcapping", cap)
        self.config = config


def _one_extent(extent: Extent, length: Length | None, time: int) -> CheckedExtent:
    """The checked extent from either `extent` or `length`.

    **Raises:** `ValueError` when both are given, or when the value does not fit.
    """
    if length is None:
        return extent_of(extent, time)
    if any(part is not None for part in extent):
        raise ValueError("`length` and `extent` are given, which both say how many tokens count: leave one out.")
    return Extent(length).checked(time)
