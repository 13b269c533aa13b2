"""Language models: tokens in, logits out, under the same cache protocol as mixers."""

import abc
from typing import Generic

import equinox as eqx
from jaxtyping import Array, Float

from ._extent import Extent
from ._types import (
    Logits,
    PRNGKeyArray,
    Token,
    Tokens,
    Valid,
)
from .mixers._mixer import Cache


class AbstractLanguageModel(eqx.Module, Generic[Cache]):
    """What the generation engine, training and scoring need of a model. One sequence; batch with `jax.vmap`.

    The laws are those of `ssmkit.AbstractMixer`, with logits as outputs: `prefill` returns the logits after the last
    valid token, `__call__` those after every token.
    """

    vocab_size: eqx.AbstractVar[int]

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end a text: what the model's `config`, where it has one, calls `eos_token_id`.

        Either one id or several may stand there. Ids outside `[0, vocab_size)` are left out: no model can produce them.
        """
        end = getattr(getattr(self, "config", None), "eos_token_id", None)
        ids = () if end is None else end if isinstance(end, tuple) else (end,)
        return tuple(token for token in dict.fromkeys(ids) if 0 <= token < self.vocab_size)

    @abc.abstractmethod
    def init_cache(self) -> Cache:
        """The cache before the first token."""

    @abc.abstractmethod
    def prefill(self, tokens: Tokens, cache: Cache, extent: Extent = Extent()) -> tuple[Logits, Cache]:
        """Consume many tokens.

        **Arguments:**

        - `tokens`: ids of `time` tokens, in `[0, vocab_size)`: not checked, as it would be in `ssmkit.generate`.
        - `cache`: the cache before the first of them.
        - `extent`: how many of them count, at least 1 for the logits to mean anything, and where new sequences start;
            by default all, and nowhere.

        **Returns:** the logits after the last token that counts (no `time x vocab` matrix), and the cache after it.
        """

    @abc.abstractmethod
    def step(self, token: Token, cache: Cache, valid: Valid | None = None) -> tuple[Logits, Cache]:
        """Consume one token, at a cost independent of how many came before.

        **Arguments:**

        - `token`: one id.
        - `cache`: the cache before it.
        - `valid`: a scalar boolean; where false, the cache is returned as it was. `None` means true.

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
        """Logits after every token, also onto a cache that is not empty: for training and scoring.

        **Arguments:**

        - `tokens`: ids of `time` tokens.
        - `cache`: the cache before the first of them.
        - `extent`: as for `prefill`; logits after tokens that do not count are unspecified.
        - `key`: for training, where features are dropped at the rates that `ssmkit.with_dropout` has set; without a
            key, nothing is dropped.

        **Returns:** logits, and the cache after the last token that counts.
        """

    def __call__(self, tokens: Tokens) -> Float[Array, "time vocab"]:
        """Logits after every token, from an empty cache."""
        return self.forward(tokens, self.init_cache())[0]
