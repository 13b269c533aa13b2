"""Language models: tokens in, logits out, under the same cache protocol as mixers."""

import abc
from typing import Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._layers import Embedding, Linear, RMSNorm, project
from ._mixer import Cache, ResidualBlock
from ._types import Length, Logits, PRNGKeyArray, Token, Tokens, Valid


class AbstractLanguageModel(eqx.Module, Generic[Cache]):
    """What the generation engine, training and scoring need of a model. One sequence; batch with `jax.vmap`.

    The laws are those of `ssmkit.AbstractMixer`, with logits as outputs: `prefill` returns the logits after the last
    valid token, `__call__` those after every token.
    """

    vocab_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def init_cache(self) -> Cache:
        """The cache before the first token."""

    @abc.abstractmethod
    def prefill(self, tokens: Tokens, cache: Cache, *, length: Length | None = None) -> tuple[Logits, Cache]:
        """Consume many tokens.

        **Arguments:**

        - `tokens`: ids of `time` tokens.
        - `cache`: the cache before the first of them.
        - `length`: how many of them are valid, at least 1 for the logits to mean anything; `None` means all.

        **Returns:** the logits after token `length - 1` only (no `time x vocab` matrix), and the cache after it.
        """

    @abc.abstractmethod
    def step(self, token: Token, cache: Cache, *, valid: Valid | None = None) -> tuple[Logits, Cache]:
        """Consume one token, at a cost independent of how many came before.

        **Arguments:**

        - `token`: one id.
        - `cache`: the cache before it.
        - `valid`: a scalar boolean; where false, the cache is returned as it was. `None` means true.

        **Returns:** the logits after the token, and the new cache.
        """

    @abc.abstractmethod
    def __call__(
        self, tokens: Tokens, *, dropout: float = 0.0, key: PRNGKeyArray | None = None
    ) -> Float[Array, "time vocab"]:
        """Logits after every token, from an empty cache: for training and scoring.

        **Arguments:**

        - `tokens`: ids of `time` tokens.
        - `dropout`: the share of features dropped, for training.
        - `key`: for dropout; not needed without it.
        """


class AbstractResidualLanguageModel(AbstractLanguageModel[tuple[Cache, ...]]):
    """Embedding, residual blocks, final norm and (tied) head; generic over the blocks' mixer.

    A model names its fields and builds them in `__init__`; everything else is final. The cache is the tuple of the
    blocks' caches.
    """

    embedding: eqx.AbstractVar[Embedding]
    blocks: eqx.AbstractVar[tuple[ResidualBlock[Cache], ...]]
    norm: eqx.AbstractVar[RMSNorm]
    head: eqx.AbstractVar[Linear | None]

    def init_cache(self) -> tuple[Cache, ...]:
        """The blocks' empty caches."""
        return tuple(block.init_cache() for block in self.blocks)

    def prefill(
        self, tokens: Tokens, cache: tuple[Cache, ...], *, length: Length | None = None
    ) -> tuple[Logits, tuple[Cache, ...]]:
        """As `AbstractLanguageModel.prefill`."""
        _check_tokens("tokens", tokens, 1)
        x = self.embedding(tokens)
        x, cache = self._through_blocks(x, cache, lambda block, x, c: block.prefill(x, c, length=length))
        last = tokens.shape[0] - 1 if length is None else jnp.maximum(length, 1) - 1
        return self._logits(jax.lax.dynamic_index_in_dim(x, last, keepdims=False)), cache

    def step(
        self, token: Token, cache: tuple[Cache, ...], *, valid: Valid | None = None
    ) -> tuple[Logits, tuple[Cache, ...]]:
        """As `AbstractLanguageModel.step`."""
        _check_tokens("token", token, 0)
        x, cache = self._through_blocks(
            self.embedding(token), cache, lambda block, x, c: block.step(x, c, valid=valid)
        )
        return self._logits(x), cache

    def __call__(
        self, tokens: Tokens, *, dropout: float = 0.0, key: PRNGKeyArray | None = None
    ) -> Float[Array, "time vocab"]:
        """As `AbstractLanguageModel.__call__`. Dropout acts on the embedding and on every residual branch."""
        _check_tokens("tokens", tokens, 1)
        drop = eqx.nn.Dropout(dropout, inference=dropout == 0.0)
        keys = [None] * (len(self.blocks) + 1) if key is None else jax.random.split(key, len(self.blocks) + 1)
        x = drop(self.embedding(tokens), key=keys[0])
        for block, block_key in zip(self.blocks, keys[1:], strict=True):
            branch, _ = block.mixer.prefill(block.norm(x), block.init_cache())
            x = block.add(x, drop(branch, key=block_key))
        return self._logits(x)

    def _through_blocks(self, x, cache, run):
        if len(cache) != len(self.blocks):
            raise ValueError(
                f"`cache` must hold one entry per block, {len(self.blocks)}, got {len(cache)}. Start from "
                "`model.init_cache()`."
            )
        caches = []
        for block, block_cache in zip(self.blocks, cache, strict=True):
            x, block_cache = run(block, x, block_cache)
            caches.append(block_cache)
        return x, tuple(caches)

    def _logits(self, x: Float[Array, "*time width"]) -> Float[Array, "*time vocab"]:
        weight = self.embedding.weight if self.head is None else self.head.weight
        return project(weight, self.norm(x))[..., : self.vocab_size]


def _check_tokens(name: str, tokens: Int[Array, "*axes"], ndim: int) -> None:
    if not jnp.issubdtype(tokens.dtype, jnp.integer) or tokens.ndim != ndim or 0 in tokens.shape:
        expected = "one integer id, shape ()" if ndim == 0 else "integer ids of shape (time,) with time at least 1"
        raise ValueError(
            f"`{name}` must be {expected}, got {tokens.dtype} of shape {tokens.shape}. A model takes one sequence; "
            "batch with `jax.vmap` or `ssmkit.generate`."
        )
