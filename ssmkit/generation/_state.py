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
    """The model's cache after the consumed tokens."""
    logits: Float[Array, "batch vocab"]
    """The logits of the next token."""
    keys: UInt32[Array, "batch _"]
    """The random state of every row, as `jax.random.key_data` gives it; zeros if no key was ever given."""
    history: Bool[Array, "batch vocab"] | None
    """The ids that each row has seen, if the sampler needs them."""
    finished: Bool[Array, " batch"]
    """True for rows that reached a stop token."""
    last: Int[Array, " batch"]
    """The last token that each row consumed."""
    consumed: Int[Array, " batch"]
    """The number of tokens that each row consumed, prompt and stop token included, without those of a given cache."""
    key_kind: str | None = eqx.field(static=True, default=None)
    """The kind of `keys`, as `jax.random.key_impl` names it; `None` if no key was ever given."""


class Generation(eqx.Module, Generic[Cache]):
    """The generated tokens, and the state from which generation continues.

    `rows` is the state after the prompt and `tokens[row, :lengths[row]]`, the stop token included. Pass `cache` to
    `generate` with a further prompt, or the whole generation to `resume`. All fields are arrays of numbers, which
    `ssmkit.save_cache` or `equinox.tree_serialise_leaves` can store.
    """

    tokens: Int[Array, "batch new"]
    """The generated ids. Past its length, a row is padded with the last token that it consumed."""
    lengths: Int[Array, " batch"]
    """The number of generated ids of each row, the stop token included."""
    rows: Rows[Cache]
    """The current state of the sequences."""
    log_probs: Float[Array, "batch new"] | None = None
    """The log-probabilities (natural) of the generated ids, before any sampler; or `None`."""
    top_tokens: Int[Array, "batch new top"] | None = None
    """The most probable ids at each position, the most probable first; `None` without `log_probs`."""
    top_log_probs: Float[Array, "batch new top"] | None = None
    """The log-probabilities of `top_tokens`. Like `log_probs` and `top_tokens`, they are 0 past a row's length."""

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
    """The new text of each row, without its stop token, and up to the beginning of a stop text."""
    generation: Generation[Cache]
    """The ids of the texts, and the state from which to continue. A stop token or stop text is among the ids."""
