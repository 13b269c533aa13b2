"""Generation: what users call. The loop itself is in `_engine.py`."""

import operator
from collections.abc import Iterator, Sequence
from typing import TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

from ._engine import Generation, begin, empty_cache, proceed
from ._language_model import AbstractLanguageModel
from ._mixer import Cache
from ._prompts import batch_bucket, bucket, read_prompts, read_stop_tokens
from ._sampling import AbstractSampler, Greedy


# Tokens that `stream` generates per dispatch, after the first.
_STREAM_TOKENS = 16
_MOST_TOKENS = 2**30

Tree = TypeVar("Tree")
# One key, or one per row; typed (`jax.random.key`) or raw (`jax.random.PRNGKey`).
Keys: TypeAlias = Key[Array, "*batch"] | UInt32[Array, "*batch _"]


def generate(
    model: AbstractLanguageModel[Cache],
    prompts: Int[Array, "batch time"] | np.ndarray | Sequence[Sequence[int]],
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
    - `stop_token`: one id or several; a row ends with the first of them it produces.
    - `cache`: of earlier tokens, as `Generation.cache`; it is not consumed. `None` starts anew. A repetition penalty
        does not see those tokens.
    - `key`: needed by a `Sampler`. One key: row `i` uses `jax.random.fold_in(key, i)`, so that a row does not depend on
        the other rows or their number. Or one key per row.

    **Returns:** a `Generation`.

    **Raises:** `ValueError` naming the argument; `FloatingPointError` when the model's logits are not finite.
    """
    batch, rows = read_prompts(prompts, lengths, model.vocab_size)
    capacity = _capacity(max_new_tokens)
    stops = read_stop_tokens(stop_token, model.vocab_size)
    keys = _with_rows(_row_keys(sampler, key, rows), rows, batch.size)
    if cache is not None:
        cache = _with_rows(_check_cache(model, cache, rows), rows, batch.size)
    result = begin((model, sampler, batch, stops, _limit(max_new_tokens), keys), capacity, cache)
    return _finish(result, max_new_tokens, rows)


def resume(
    model: AbstractLanguageModel[Cache],
    generation: Generation[Cache],
    max_new_tokens: int = 64,
    sampler: AbstractSampler = Greedy(),  # noqa: B008 (immutable)
    *,
    stop_token: int | Sequence[int] | None = None,
) -> Generation[Cache]:
    """Go on where a generation ended, without a new prompt token.

    `generate` followed by `resume` gives the tokens of one longer `generate`, random ones too. Rows that had finished
    stay as they are.

    **Arguments:** as `generate`; `generation` is not consumed.

    **Returns:** a `Generation` whose `tokens` and `lengths` are the new tokens only.

    **Raises:** as `generate`.
    """
    if sampler.needs_history and generation.history is None:
        raise ValueError("`sampler` has a repetition penalty, but `generation` was made by one without.")
    stops = read_stop_tokens(stop_token, model.vocab_size)
    capacity = _capacity(max_new_tokens)
    rows = generation.finished.shape[0]
    _check_cache(model, generation.cache, rows)
    result = proceed((model, sampler, stops, _limit(max_new_tokens)), capacity, _padded(_last_token(generation)))
    return _finish(result, max_new_tokens, rows)


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
    _capacity(max_new_tokens)
    batch, rows = read_prompts([prompt] if np.ndim(prompt) == 1 else prompt, None, model.vocab_size)
    if rows != 1:
        raise ValueError(f"`prompt` must be one sequence of ids, got {rows}. Use `generate` for a batch.")
    stops = read_stop_tokens(stop_token, model.vocab_size)
    keys = _row_keys(sampler, key, 1)

    def tokens() -> Iterator[int]:
        left, ask = max_new_tokens, 1
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


def _row_keys(sampler: AbstractSampler, key: Keys | None, size: int) -> Key[Array, " batch"]:
    if not isinstance(sampler, AbstractSampler):
        raise ValueError(f"`sampler` must be a sampler such as `ssmkit.Greedy()`, got {sampler!r}.")
    if key is not None and not isinstance(key, jax.Array):
        raise ValueError(f"`key` must be made by `jax.random.key(seed)`, got {key!r}.")
    if key is None and sampler.needs_key:
        raise ValueError(f"`key` is needed by {type(sampler).__name__}: pass `key=jax.random.key(seed)`.")
    keys: Array = jax.random.key(0) if key is None else key
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        keys = jax.random.wrap_key_data(keys)
    if keys.ndim == 0:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(keys, jnp.arange(size, dtype=jnp.uint32))
    if keys.shape != (size,):
        raise ValueError(f"`key` must be one key or one per prompt, {size}, got shape {keys.shape}.")
    return jnp.copy(keys)


def _capacity(max_new_tokens: int) -> int:
    if not hasattr(max_new_tokens, "__index__") or not 0 <= operator.index(max_new_tokens) <= _MOST_TOKENS:
        raise ValueError(f"`max_new_tokens` must be an integer in [0, {_MOST_TOKENS}], got {max_new_tokens}.")
    return 0 if max_new_tokens == 0 else bucket(operator.index(max_new_tokens))


def _limit(max_new_tokens: int) -> Int[Array, ""]:
    return jnp.asarray(max_new_tokens, jnp.int32)


def _check_cache(model, cache, size: int):
    expected = eqx.filter_eval_shape(lambda: empty_cache(model, size))
    describe = lambda tree: jax.tree.map(lambda x: f"{x.dtype}{x.shape}", tree)  # noqa: E731
    if jax.tree.structure(cache) != jax.tree.structure(expected):
        raise ValueError(
            f"`cache` must have the structure of `model.init_cache()`, {jax.tree.structure(expected)}, got "
            f"{jax.tree.structure(cache)}."
        )
    pairs = zip(jax.tree.leaves(describe(cache)), jax.tree.leaves(describe(expected)), strict=True)
    wrong = [f"got {got}, expected {want}" for got, want in pairs if got != want]
    if wrong:
        raise ValueError(
            f"`cache` must have a leading batch axis of {size} on every array, as `Generation.cache` has: {wrong[0]}."
        )
    return cache


def _finish(result: Generation, max_new_tokens: int, rows: int) -> Generation:
    bad = np.flatnonzero(~np.all(np.isfinite(np.asarray(result.logits)[:rows]), axis=1))
    if bad.size:
        raise FloatingPointError(
            f"the model's logits are not finite in rows {bad.tolist()}: its weights or its cache hold NaN or infinity."
        )
    # By way of the host: a slice on the device, even `jnp.asarray`, would be compiled for every size.
    tokens = np.asarray(result.tokens)[:rows, :max_new_tokens]
    result = eqx.tree_at(lambda g: g.tokens, result, jax.device_put(tokens))
    return result if result.finished.shape[0] == rows else _resized(result, rows)
