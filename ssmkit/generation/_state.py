"""The state of sequences during generation, and the generated tokens."""

import dataclasses
from typing import Generic

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, UInt32

from ..mixers._mixer import Cache


class Rows(eqx.Module, Generic[Cache]):
    """The state of many sequences: the carry of the decode loop, and the slots of a server.

    Every array has a leading `batch` axis: `ssmkit.rows` takes, puts, copies and chooses rows.
    """

    cache: Cache
    """The model's cache after the tokens consumed."""
    logits: Float[Array, "batch vocab"]
    """Logits for the token that would come next."""
    keys: UInt32[Array, "batch _"]
    """The random state of every row, as `jax.random.key_data` gives it; zeros if no key was ever given."""
    history: Bool[Array, "batch vocab"] | None
    """Which ids each row has seen, if the sampler asked for it."""
    finished: Bool[Array, " batch"]
    """Which rows reached a stop token."""
    last: Int[Array, " batch"]
    """The last token that each row consumed."""
    consumed: Int[Array, " batch"]
    """How many tokens each row consumed, prompt and stop token included; those in a cache passed in do not count."""
    key_kind: str | None = eqx.field(static=True, default=None)
    """The kind of `keys`, as `jax.random.key_impl` names it; `None` if no key was ever given."""


class Generation(eqx.Module, Generic[Cache]):
    """The generated tokens, and the state from which generation continues.

    `rows` is the state after the prompt and `tokens[row, :lengths[row]]`, the stop token included. Pass `cache` to
    `generate` with a further prompt, or the whole generation to `resume`. All fields are arrays of numbers, which
    `ssmkit.save_cache` or `equinox.tree_serialise_leaves` can store.
    """

    tokens: Int[Array, "batch new"]
    """Generated ids; past its length, a row is filled up with the last token it consumed."""
    lengths: Int[Array, " batch"]
    """How many ids of each row were generated, the stop token included."""
    rows: Rows[Cache]
    """The sequences as they are now."""
    log_probs: Float[Array, "batch new"] | None = None
    """Natural logarithms of the probabilities that the model gave the ids generated, before any sampler; or `None`."""
    top_tokens: Int[Array, "batch new top"] | None = None
    """The most probable ids in the place of each, the most probable first; `None` without `log_probs`."""
    top_log_probs: Float[Array, "batch new top"] | None = None
    """Their log-probabilities. All three are 0 past a row's length."""

    @property
    def finished(self) -> Bool[Array, " batch"]:
        """True for rows that reached a stop token."""
        return self.rows.finished

    @property
    def cache(self) -> Cache:
        """The model's cache, with a leading `batch` axis on every array."""
        return self.rows.cache


@dataclasses.dataclass(frozen=True)
class TextGeneration(Generic[Cache]):
    """The result of `ssmkit.generate` with a tokenizer."""

    texts: list[str]
    """What each row adds to its prompt: without its stop token, and up to where a stop text begins."""
    generation: Generation[Cache]
    """The same as ids, and everything to go on from; a stop token, and a stop text, are among the ids."""
