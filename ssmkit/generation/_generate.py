"""Generation: what users call. The loop itself is in `_engine.py`."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._arguments import check_model
from .._language_model import AbstractLanguageModel
from .._types import TokensLike, checks_itself, shown, whole
from ..mixers._mixer import Cache
from ._cache import check_cache, check_generation
from ._engine import Generation, begin, proceed
from ._keys import Keys, check_key, check_sampler, plain_keys, row_keys
from ._prompts import batch_bucket, bucket, read_prompt, read_prompts, read_stop_tokens
from ._sampling import AbstractSampler, Greedy


# Tokens that `stream` generates per dispatch, after the first.
_STREAM_TOKENS = 16
_MOST_TOKENS = 2**30

Tree = TypeVar("Tree")


@checks_itself
def generate(
    model: AbstractLanguageModel[Cache],
    prompts: Int[Array, "batch time"] | np.ndarray | Sequence[Sequence[int] | TokensLike],
    max_new_tokens: int = 64,
    sampler: AbstractSampler = Greedy(),  # noqa: B008 (immutable)
    *,
    lengths: Int[Array, " batch"] | np.ndarray | Sequence[int] | None = None,
    stop_token: int | Sequence[int] | None = None,
    cache: Cache | None = None,
    key: Keys | None = None,
) -> Generation[Cache]:
    """Continue every prompt: prefill, decoding, sampling and stopping in one executable.

    Prompts of unequal length in one batch give what each gives alone. One executable serves every prompt length and
    number of tokens up to the next power of two, every number of prompts up to the next of 1, 2, 3, 4, 6, 8, 12, 16
    and so on, every sampler setting, and every stop token.

    **Arguments:**

    - `model`: any language model.
    - `prompts`: token ids, a list of lists, or an array with `lengths`. No prompt may be empty.
    - `max_new_tokens`: how many tokens to generate at most; 0 only consumes the prompts.
    - `sampler`: `Greedy()` or a `Sampler`.
    - `lengths`: valid tokens of each row of an array; `None` means all.
    - `stop_token`: one id or several; a row ends with the first of them it produces. They replace the model's own,
        `model.stop_tokens`, which are the default; `()` means none at all.
    - `cache`: of earlier tokens, as `Generation.cache`; it is not consumed. `None` starts anew. A repetition penalty
        does not see those tokens.
    - `key`: needed by a `Sampler`. One key: row `i` uses `jax.random.fold_in(key, i)`, so that a row does not depend on
        the other rows or their number. Or one key per row.

    **Returns:** a `Generation`.

    **Raises:** `ValueError` naming the argument; `FloatingPointError` when the model's logits are not finite.
    """
    check_model(model)
    batch, rows = read_prompts(prompts, lengths, model.vocab_size)
    count = _count(max_new_tokens)
    stops = read_stop_tokens(stop_token, model.vocab_size, model.stop_tokens)
    check_sampler(sampler)
    check_key(sampler, key is not None)
    keys = row_keys(key, rows, batch.size)
    if cache is not None:
        check_cache(model, cache, rows)
        cache = _with_rows(cache, rows, batch.size)
    result = begin((model, sampler, batch, stops, _limit(count), keys), _capacity(count), cache)
    return _finish(result, count, rows)


@checks_itself
def resume(
    model: AbstractLanguageModel[Cache],
    generation: Generation[Cache],
    max_new_tokens: int = 64,
    sampler: AbstractSampler = Greedy(),  # noqa: B008 (immutable)
    *,
    stop_token: int | Sequence[int] | None = None,
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
    check_sampler(sampler)
    if sampler.needs_history and generation.history is None:
        raise ValueError("`sampler` has a repetition penalty, but `generation` was made by one without.")
    check_key(sampler, key is not None or generation.key_kind is not None, "`generation` was made without one; ")
    stops = read_stop_tokens(stop_token, model.vocab_size, model.stop_tokens)
    count = _count(max_new_tokens)
    start = _padded(_last_token(generation))
    if key is not None:
        size = start.finished.shape[0]
        data, kind = plain_keys(row_keys(key, rows, size), size)
        start = dataclasses.replace(start, keys=data, key_kind=kind)
    result = proceed((model, sampler, stops, _limit(count)), _capacity(count), start)
    return _finish(result, count, rows)


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
    count = _count(max_new_tokens)
    batch = read_prompt(prompt, model.vocab_size)
    stops = read_stop_tokens(stop_token, model.vocab_size, model.stop_tokens)
    check_sampler(sampler)
    check_key(sampler, key is not None)
    keys = row_keys(key, 1, 1)

    def tokens() -> Iterator[int]:
        left, ask = count, 1
        result = begin((model, sampler, batch, stops, _limit(0), keys), 0, None)
        while left > 0 and not bool(result.finished[0]):
            ask = min(ask, left)
            result = proceed((model, sampler, stops, _limit(ask)), _STREAM_TOKENS, _last_token(result))
            result = _finish(result, ask, 1)
            yield from np.asarray(result.tokens)[0, : int(result.lengths[0])].tolist()
            left, ask = left - ask, _STREAM_TOKENS

    return tokens()


def _last_token(generation: Generation[Cache]) -> Generation[Cache]:
    """Only the last token of each row: how many there are must not matter for what is compiled next."""
    last = np.pad(np.asarray(generation.tokens), ((0, 0), (1, 0)))[:, -1:]
    return eqx.tree_at(lambda g: g.tokens, generation, jnp.asarray(last))


def _padded(generation: Generation[Cache]) -> Generation[Cache]:
    """A copy with as many rows as an executable has; those that are added are finished."""
    rows = generation.finished.shape[0]
    size = batch_bucket(rows)
    finished = np.pad(np.asarray(generation.finished), (0, size - rows), constant_values=True)
    return eqx.tree_at(lambda g: g.finished, _with_rows(generation, rows, size), jnp.asarray(finished))


def _with_rows(tree: Tree, rows: int, size: int) -> Tree:
    """A copy of so many rows with `size` rows: the first ones, or the last one again and again."""
    return jax.tree.map(jnp.copy, tree) if rows == size else _resized(tree, size)


@eqx.filter_jit
def _resized(tree: Tree, size: int) -> Tree:
    return jax.tree.map(lambda x: x[jnp.minimum(jnp.arange(size), x.shape[0] - 1)], tree)


def _count(max_new_tokens: Any) -> int:
    count = whole(max_new_tokens)
    if count is None or not 0 <= count <= _MOST_TOKENS:
        raise ValueError(f"`max_new_tokens` must be an integer in [0, {_MOST_TOKENS}], got {shown(max_new_tokens)}.")
    return count


def _capacity(count: int) -> int:
    return 0 if count == 0 else bucket(count)


def _limit(max_new_tokens: int) -> Int[Array, ""]:
    return jnp.asarray(max_new_tokens, jnp.int32)


def _finish(result: Generation, max_new_tokens: int, rows: int) -> Generation:
    bad = np.flatnonzero(~np.all(np.isfinite(np.asarray(result.logits)[:rows]), axis=1))
    if bad.size:
        raise FloatingPointError(
            f"the model's logits are not finite in rows {bad.tolist()}: its weights or its cache hold NaN or infinity."
        )
    # By way of the host: a slice on the device, even `jnp.asarray`, would be compiled for every size.
    tokens = np.asarray(result.tokens)[:rows, :max_new_tokens]
    if result.finished.shape[0] != rows:
        result = _resized(result, rows)
    return eqx.tree_at(lambda g: g.tokens, result, jax.device_put(tokens))
