"""Language models: tokens in, logits out, under the same cache protocol as mixers."""

import abc
from typing import Generic

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._extent import Extent
from ._final import hook
from ._types import (
    Logits,
    PRNGKeyArray,
    Token,
    Tokens,
    Valid,
)
from .mixers._mixer import Cache


class AbstractLanguageModel(eqx.Module, Generic[Cache]):
    """The interface of models for the generation engine, training and scoring: one sequence; batch with `jax.vmap`.

    The laws are those of `ssmkit.AbstractMixer`, with logits as outputs: `prefill` returns the logits after the last
    valid token, and `__call__` returns those after every token.
    """

    vocab_size: eqx.AbstractVar[int]

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end a text: the `eos_token_id` of the model's `config`, if it has one.

        It may be one id or several. Ids outside `[0, vocab_size)` are left out, because the model cannot produce them.
        """
        end = getattr(getattr(self, "config", None), "eos_token_id", None)
        ids = () if end is None else end if isinstance(end, tuple) else (end,)
        return tuple(token for token in dict.fromkeys(ids) if 0 <= token < self.vocab_size)

    @abc.abstractmethod
    def init_cache(self) -> Cache:
        """The cache before the first token."""

    @hook
    def reserve(self, cache: Cache, tokens: int) -> Cache:
        """The same cache with room for `tokens` more tokens. A cache that does not store tokens is returned unchanged.

        `ssmkit.generate` and all other functions that run a model call it themselves. Call it yourself before you call
        `prefill` and `step`.

        **Arguments:**

        - `cache`: the cache of one sequence, or of rows with a leading axis on every array.
        - `tokens`: the number of tokens to come; a Python integer.

        **Returns:** the cache. Under a trace, the number of earlier tokens is unknown, so the old room counts as full.

        **Raises:** `ValueError` when `tokens` is not a number of tokens.
        """
        return cache

    @abc.abstractmethod
    def prefill(self, tokens: Tokens, cache: Cache, extent: Extent = Extent()) -> tuple[Logits, Cache]:
        """Consume many tokens.

        **Arguments:**

        - `tokens`: ids of `time` tokens, in `[0, vocab_size)`. The range is not checked here, unlike in
            `ssmkit.generate`.
        - `cache`: the cache before the first of them.
        - `extent`: how many tokens count, and where new sequences start. By default all tokens count, as one sequence.
            At least one token must count, or the logits mean nothing.

        **Returns:** the logits after the last token that counts (no `time x vocab` matrix), and the cache after it.
        """

    @abc.abstractmethod
    def step(self, token: Token, cache: Cache, valid: Valid | None = None) -> tuple[Logits, Cache]:
        """Consume one token, at a cost that does not depend on the number of tokens before it.

        **Arguments:**

        - `token`: one id.
        - `cache`: the cache before it.
        - `valid`: a scalar boolean; if false, the cache is returned unchanged. `None` means true.

        **Returns:** the logits after the token, and the new cache.
        """

    @abc.abstractmethod
    def forward(
        self,
        tokens: Tokens,
        cache: Cache,
        extent: Extent = Extent(),
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "time vocab"], Cache]:
        """Compute logits after every token, for training and scoring. The cache need not be empty.

        **Arguments:**

        - `tokens`: ids of `time` tokens.
        - `cache`: the cache before the first of them.
        - `extent`: as for `prefill`; logits after tokens that do not count are unspecified.
        - `key`: for training; features are then dropped at the rates that `ssmkit.with_dropout` has set. Without a
            key, nothing is dropped.

        **Returns:** logits, and the cache after the last token that counts.
        """

    def __call__(self, tokens: Tokens) -> Float[Array, "time vocab"]:
        """Logits after every token, from an empty cache."""
        return self.forward(tokens, self.reserve(self.init_cache(), jnp.size(tokens)))[0]
