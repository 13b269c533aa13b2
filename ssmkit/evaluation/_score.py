"""The score of a model on a text."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from .._ids import read_ids
from .._language_model import AbstractLanguageModel
from .._sharding import fetched, over_sequence, sharded_by_xla
from .._types import Tokens, checks_itself
from ..parallel._place import place_of


PIECE = 512


@sharded_by_xla
def cross_entropy(logits: Float[ArrayLike, "time vocab"], targets: Int[ArrayLike, " time"]) -> Float[Array, " time"]:
    """The nats per token: the negative log-probability that `logits` give to `targets`."""
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


class Score(NamedTuple):
    """The total over a text: `nats` for `tokens` predicted tokens (every token but the first)."""

    nats: float
    tokens: int

    @property
    def nats_per_token(self) -> float:
        """The mean negative log-probability per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """The perplexity `exp(nats_per_token)`; infinite if float64 cannot hold it."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nats_per_token))


@checks_itself
def score(
    model: AbstractLanguageModel,
    tokens: Tokens | Int[np.ndarray, " time"] | Sequence[int],
    *,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Score a text of any length as one sequence: the cache is carried from piece to piece.

    Memory does not grow with the length, no context is cut off, and one executable serves every length.

    **Arguments:**

    - `model`: any language model.
    - `tokens`: at least two ids; every one but the first is predicted from all before it.
    - `progress`: called with the number of tokens done after each piece.

    **Returns:** a `Score`.

    **Raises:** `ValueError` for fewer than two tokens, or ids outside the vocabulary; `FloatingPointError` when the
    model's logits are not numbers.
    """
    ids = np.asarray(read_ids("`tokens`", tokens, "time", least=2, vocab_size=model.vocab_size))
    inputs, targets = ids[:-1], ids[1:]
    place, model = place_of(model)
    piece = PIECE * place.sizes.get("sequence", 1)
    with place.active():
        cache, nats = model.init_cache(), 0.0
        for start in range(0, len(inputs), piece):
            valid = min(piece, len(inputs) - start)
            padding = (0, piece - valid)
            given = np.pad(inputs[start : start + piece], padding).astype(np.int32)
            wanted = np.pad(targets[start : start + piece], padding).astype(np.int32)
            losses, cache = _piece(model, given, wanted, model.reserve(cache, piece))
            nats += float(np.sum(fetched(losses).astype(np.float64)[:valid]))
            if progress is not None:
                progress(start + valid)
    if np.isnan(nats):
        raise FloatingPointError(
            "the model's logits are not numbers: its weights hold NaN or infinity, or the cache of an exported model "
            f"has no room for these {len(ids)} tokens (`context` of `save_exported`)."
        )
    return Score(nats=nats, tokens=len(inputs))


@eqx.filter_jit
def _piece(model, inputs, targets, cache):
    logits, cache = model.forward(over_sequence(inputs, axis=0), cache)
    return cross_entropy(logits, targets), cache
