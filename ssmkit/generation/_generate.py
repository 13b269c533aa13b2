"""Generation: what users call. The loop itself is in `_engine.py`."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._arguments import check_model
from .._language_model import AbstractLanguageModel
from .._types import TokensLike, checks_itself
from ..mixers._mixer import Cache
from . import rows as axis
from ._cache import check_cache, check_generation
from ._engine import Inputs, begin, proceed
from ._keys import Keys, check_key, plain_keys, row_keys
from ._prompts import batch_bucket, bucket, read_prompt, read_prompts
from ._requests import as_request, read_limits, read_sampler, read_stops
from ._sampling import AbstractSampler, Greedy
from ._state import Generation, Rows


# Tokens that `stream` generates per dispatch, after the first.
_STREAM_TOKENS = 16

Tree = TypeVar("Tree")


@checks_itself
def generate(
    model: AbstractLanguageModel[Cache],
    prompts: Int[Array, "batch time"] | np.ndarray | Sequence[Sequence[int] | TokensLike],
    max_new_tokens: int | Sequence[int] = 64,
    sampler: AbstractSampler | Sequence[AbstractSampler] = Greedy(),  # noqa: B008 (immutable)
    *,
    lengths: Int[Array, " batch"] | np.ndarray | Sequence[int] | None = None,
    stop_token: int | Sequence[int | Sequence[int] | None] | None = None,
    cache: Cache | None = None,
    key: Keys | None = None,
) -> Generation[Cache]:
    """Continue every prompt: prefill, decoding, sampling and stopping in one executable.

    Prompts of unequal length in one batch give what each gives alone. One executable serves every prompt length and
    number of tokens up to the next power of two, every number of prompts up to the next of 1, 2, 3, 4, 6, 8, 12, 16
    and so on, every sampler setting, and every stop token. Limits, samplers and stop tokens may differ by row: `Greedy`
    and any `Sampler` then share an executable, which has every filter.

    **Arguments:**

    - `model`: any language model.
    - `prompts`: token ids, a list of lists, or an array with `lengths`. No prompt may be empty.
    - `max_new_tokens`: how many tokens to generate at most, one number or one per prompt; 0 only consumes the prompts.
    - `sampler`: `Greedy()` or a `Sampler`, or a list with one per prompt.
    - `lengths`: valid tokens of each row of an array; `None` means all.
    - `stop_token`: one id or several; a row ends with the first of them it produces. They replace the model's own,
        `model.stop_tokens`, which are the default; `()` means none at all. Or a list with one of these per prompt:
        `[[5], (), None]`.
    - `cache`: of earlier tokens, as `Generation.cache`; it is not consumed. `None` starts anew. A repetition penalty
        does not see those tokens.
    - `key`: needed by a `Sampler`. One key: row `i` uses `jax.random.fold_in(key, i)`, so that a row does not depend on
        the other rows or their number. Or one key per row.

    **Returns:** a `Generation`.

    **Raises:** `ValueError` naming the argument; `FloatingPointError` when the model's logits are not finite.
    """
    check_model(model)
    batch, rows = read_prompts(prompts, lengths, model.vocab_size)
    limits = read_limits(max_new_tokens, rows)
    stops = read_stops(stop_token, model.vocab_size, model.stop_tokens, rows)
    samplers = read_sampler(sampler, rows)
    check_key(samplers, key is not None)
    keys = row_keys(key, rows, batch.size)
    capacity = _capacity(limits)
    if cache is not None:
        check_cache(model, cache, rows)
        cache = model.reserve(_with_rows(cache, rows, batch.size), batch.tokens.shape[1] + capacity)
    inputs = Inputs(model, as_request(limits, stops, samplers, batch.size), batch, keys)
    return _finish(begin(inputs, capacity, cache), limits, rows)


@checks_itself
def resume(
    model: AbstractLanguageModel[Cache],
    generation: Generation[Cache],
    max_new_tokens: int | Sequence[int] = 64,
    sampler: AbstractSampler | Sequence[AbstractSampler] = Greedy(),  # noqa: B008 (immutable)
    *,
    stop_token: int | Sequence[int | Sequence[int] | None] | None = None,
    key: Keys | None = None,
) -> Generation[Cache]:
    """Go on where a generation ended, without a new prompt token.

    `generate` followed by `resume` gives the tokens of one longer `generate`, random ones too. Rows that had finished
    stay as they are.

    **Arguments:** as `generate`; `generation` is not consumed, and

    - `key`: `None` goes on with each row's own random state, so that copies of one row stay copies. A key starts it
        anew, as in `generate`: needed by a `Sampler` where `generation` was made without one, and to let copies differ.

    **Returns:** a `Generation` whose `tokens` and `lengths` are the new tokens only.

    **Raises:** as `generate`; `ValueError` when `generation` is of another model.
    """
    check_model(model)
    rows = check_generation(model, generation)
    samplers = read_sampler(sampler, rows)
    if samplers[0].needs_history and generation.rows.history is None:
        raise ValueError("`sampler` has a repetition penalty, but `generation` was made by one without.")
    check_key(samplers, key is not None or generation.rows.key_kind is not None, "`generation` was made without one; ")
    limits = read_limits(max_new_tokens, rows)
    stops = read_stops(stop_token, model.vocab_size, model.stop_tokens, rows)
    start = _padded(generation.rows)
    size = start.finished.shape[0]
    if key is not None:
        data, kind = plain_keys(row_keys(key, rows, size), size)
        start = dataclasses.replace(start, keys=data, key_kind=kind)
    capacity = _capacity(limits)
    inputs = Inputs(model, as_request(limits, stops, samplers, size))
    return _finish(proceed(inputs, capacity, _reserved(model, start, capacity)), limits, rows)


@checks_itself
def stream(
    model: AbstractLanguageModel[Cache],
    prompt: Sequence[int] | Int[Array, " time"] | np.ndarray,
    max_new_tokens: int = 64,
    sampler: AbstractSampler = Greedy(),  # noqa: B008 (immutable)
    *,
    stop_token: int | Sequence[int] | None = None,
    key: Keys | None = None,
) -> Iterator[int]:
    """The tokens of `generate` for one prompt, as they come: the first at once, then several per dispatch.

    **Arguments:** as `generate`, with one prompt.

    **Returns:** an iterator over ids; a stop token, if one is reached, is the last.

    **Raises:** as `generate`, at the call rather than at the first token.
    """
    check_model(model)
    batch = read_prompt(prompt, model.vocab_size)
    (count,) = read_limits(max_new_tokens, 1)
    stops = read_stops(stop_token, model.vocab_size, model.stop_tokens, 1)
    samplers = read_sampler(sampler, 1)
    check_key(samplers, key is not None)
    keys = row_keys(key, 1, 1)

    def tokens() -> Iterator[int]:
        left, ask = count, 1
        result = begin(Inputs(model, as_request([0], stops, samplers, 1), batch, keys), 0, None)
        while left > 0 and not bool(result.finished[0]):
            ask = min(ask, left)
            inputs = Inputs(model, as_request([ask], stops, samplers, 1))
            start = _reserved(model, result.rows, _STREAM_TOKENS)
            result = _finish(proceed(inputs, _STREAM_TOKENS, start), [ask], 1)
            yield from np.asarray(result.tokens)[0, : int(result.lengths[0])].tolist()
            left, ask = left - ask, _STREAM_TOKENS

    return tokens()


def _padded(rows: Rows[Cache]) -> Rows[Cache]:
    """A copy with as many rows as an executable has; those that are added are finished."""
    count = rows.finished.shape[0]
    size = batch_bucket(count)
    finished = np.pad(np.asarray(rows.finished), (0, size - count), constant_values=True)
    return dataclasses.replace(_with_rows(rows, count, size), finished=jnp.asarray(finished))


def _reserved(model: AbstractLanguageModel[Cache], rows: Rows[Cache], tokens: int) -> Rows[Cache]:
    return dataclasses.replace(rows, cache=model.reserve(rows.cache, tokens))


def _with_rows(tree: Tree, rows: int, size: int) -> Tree:
    """A copy of so many rows with `size` rows: the first ones, or the last one again and again."""
    return jax.tree.map(jnp.copy, tree) if rows == size else _resized(tree, size)


_resized = eqx.filter_jit(axis.resized)


def _capacity(limits: Sequence[int]) -> int:
    return 0 if max(limits) == 0 else bucket(max(limits))


def _finish(result: Generation, limits: Sequence[int], rows: int) -> Generation:
    bad = np.flatnonzero(~np.all(np.isfinite(np.asarray(result.rows.logits)[:rows]), axis=1))
    if bad.size:
        raise FloatingPointError(
            f"the model's logits are not finite in rows {bad.tolist()}: its weights or its cache hold NaN or infinity, "
            "or its cache had no room for all tokens (an exported model has room for its `context`)."
        )
    # By way of the host: a slice on the device, even `jnp.asarray`, would be compiled for every size.
    tokens = np.asarray(result.tokens)[:rows, : max(limits)]
    if result.finished.shape[0] != rows:
        result = _resized(result, rows)
    return eqx.tree_at(lambda g: g.tokens, result, jax.device_put(tokens))
