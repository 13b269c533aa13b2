"""The public functions for generation. The decode loop is in `_engine.py`."""

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
from jaxtyping import Array, Int

from .._arguments import check_model
from .._language_model import AbstractLanguageModel
from .._types import TokensLike, checks_itself
from ..mixers._mixer import Cache
from ..text._tokenizer import Tokenizer
from ._keys import Keys
from ._sampling import AbstractSampler, Greedy
from ._state import Generation, TextGeneration
from ._task import Asked, at_once, from_generation, from_prompts, turns


# The number of tokens per dispatch if the host must search for stop texts.
_TURN = 64

Ids: TypeAlias = Sequence[int] | TokensLike
Batch: TypeAlias = Int[Array, "batch time"] | np.ndarray | Sequence[Ids]
Samplers: TypeAlias = AbstractSampler | Sequence[AbstractSampler]
StopTokens: TypeAlias = int | Sequence[int | Sequence[int] | None] | None
StopTexts: TypeAlias = str | Sequence[str | Sequence[str] | None] | None


@overload
def generate(
    model: AbstractLanguageModel[Cache],
    prompts: Batch,
    max_new_tokens: int | Sequence[int] = 64,
    sampler: Samplers = Greedy(),  # noqa: B008 (immutable)
    *,
    lengths: Int[Array, " batch"] | np.ndarray | Sequence[int] | None = None,
    stop_token: StopTokens = None,
    cache: Cache | None = None,
    key: Keys | None = None,
    log_probs: int | None = None,
    tokenizer: None = None,
    stop_text: None = None,
) -> Generation[Cache]: ...


@overload
def generate(
    model: AbstractLanguageModel[Cache],
    prompts: str | Sequence[str | Ids] | Batch,
    max_new_tokens: int | Sequence[int] = 64,
    sampler: Samplers = Greedy(),  # noqa: B008 (immutable)
    *,
    lengths: Int[Array, " batch"] | np.ndarray | Sequence[int] | None = None,
    stop_token: StopTokens = None,
    cache: Cache | None = None,
    key: Keys | None = None,
    log_probs: int | None = None,
    tokenizer: Tokenizer,
    stop_text: StopTexts = None,
) -> TextGeneration[Cache]: ...


@checks_itself
def generate(
    model: AbstractLanguageModel[Cache],
    prompts: str | Sequence[str | Ids] | Batch,
    max_new_tokens: int | Sequence[int] = 64,
    sampler: Samplers = Greedy(),  # noqa: B008 (immutable)
    *,
    lengths: Int[Array, " batch"] | np.ndarray | Sequence[int] | None = None,
    stop_token: StopTokens = None,
    cache: Cache | None = None,
    key: Keys | None = None,
    log_probs: int | None = None,
    tokenizer: Tokenizer | None = None,
    stop_text: StopTexts = None,
) -> Generation[Cache] | TextGeneration[Cache]:
    """Continue every prompt: prefill, decoding, sampling and stopping in one executable.

    Each prompt of a batch gives the tokens that it gives alone, also if lengths differ. One executable serves every
    prompt length and number of tokens up to the next power of two, every number of prompts up to the next of 1, 2, 3,
    4, 6, 8, 12, 16 and so on, every sampler setting, and every stop token. Limits, samplers and stop tokens may differ
    by row: `Greedy` and any `Sampler` then share an executable, which has every filter.

    **Arguments:**

    - `model`: any language model.
    - `prompts`: token ids, a list of lists, or an array with `lengths`. No prompt may be empty.
    - `max_new_tokens`: the largest number of new tokens, one for all or one per prompt; 0 only consumes the prompts.
    - `sampler`: `Greedy()` or a `Sampler`, or a list with one per prompt.
    - `lengths`: the number of valid tokens in each row of an array; `None` means all.
    - `stop_token`: one id or several. A row ends with the first of them that it produces. They replace the default, the
        model's own `model.stop_tokens`; `()` means no stop token. A list such as `[[5], (), None]` has one of these
        per prompt.
    - `cache`: the cache of earlier tokens, as `Generation.cache`; it is not consumed. `None` starts from an empty
        cache. A repetition penalty does not see the earlier tokens.
    - `key`: a `Sampler` needs it. With one key, row `i` uses `jax.random.fold_in(key, i)`, so that a row does not
        depend on the other rows or their number. One key per row is possible too.
    - `log_probs`: a number of 0 or more. Keeps the log-probability of every generated token, and of this number of the
        most probable tokens at the same position. Each number has its own executable.
    - `tokenizer`: with it, prompts may be one text or several, also mixed with ids. With a `cache`, the special tokens
        that the tokenizer puts around a text, such as BOS, are left out.
    - `stop_text`: one text or several, or a list with one of these per prompt; it needs a `tokenizer`. A row ends with
        the token that completes a stop text, wherever tokens split its characters. With stop texts, 64 tokens are
        generated per dispatch.

    **Returns:** a `Generation`; with a `tokenizer`, a `TextGeneration`, which also has the texts.

    **Raises:** `ValueError` naming the argument; `FloatingPointError` when the model's logits are not finite.
    """
    check_model(model)
    asked = Asked(max_new_tokens, sampler, stop_token, key, tokenizer, stop_text, log_probs)
    task = from_prompts(model, prompts, lengths, cache, asked)
    generation = _end_of(turns(task, _TURN, _TURN)) if task.has_stop_texts else at_once(task)
    if task.transcripts is None:
        return generation
    return TextGeneration([transcript.text for transcript in task.transcripts], generation)


@checks_itself
def resume(
    model: AbstractLanguageModel[Cache],
    generation: Generation[Cache],
    max_new_tokens: int | Sequence[int] = 64,
    sampler: Samplers = Greedy(),  # noqa: B008 (immutable)
    *,
    stop_token: StopTokens = None,
    key: Keys | None = None,
    log_probs: int | None = None,
) -> Generation[Cache]:
    """Continue a generation from its end, without a new prompt token.

    `generate` followed by `resume` gives the tokens of one longer `generate`, also with random sampling. Finished rows
    stay unchanged.

    **Arguments:** as `generate`; `generation` is not consumed, and

    - `key`: `None` continues with each row's own random state, so that copies of one row stay equal. A key replaces the
        random states, as in `generate`. A `Sampler` needs a key if `generation` was made without one, and copies need
        one to differ.

    **Returns:** a `Generation` whose `tokens` and `lengths` are the new tokens only.

    **Raises:** as `generate`; `ValueError` when `generation` belongs to another model.
    """
    check_model(model)
    asked = Asked(max_new_tokens, sampler, stop_token, key, log_probs=log_probs)
    return at_once(from_generation(model, generation, asked))


def _end_of(turns: Generator[Any, None, Generation]) -> Generation:
    """The result of all turns, whose items are dropped."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value
