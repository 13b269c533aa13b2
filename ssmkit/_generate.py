"""The generation engine: it owns the batch axis and the only decode loop, and knows nothing of any model."""

from collections.abc import Iterator, Sequence
from typing import Generic, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from ._language_model import AbstractLanguageModel
from ._mixer import Cache
from ._prompts import Prompts, bucket, read_prompts, read_stop_tokens
from ._sampling import AbstractSampler, Greedy


# Prompts are consumed in segments of at most this many tokens: memory does not grow with a prompt, and one executable
# serves every length.
_SEGMENT = 512
# Tokens that `stream` generates per dispatch, after the first.
_STREAM_TOKENS = 16

# One key, or one per row; typed (`jax.random.key`) or raw (`jax.random.PRNGKey`).
Keys: TypeAlias = Key[Array, "*batch"] | UInt32[Array, "*batch _"]


class Generation(eqx.Module, Generic[Cache]):
    """What was generated, and everything to go on from there.

    `cache` and `logits` are what consuming the prompt and `tokens[row, :lengths[row]]` gives, the stop token included:
    pass `cache` back to `generate` with a further prompt, or the whole to `resume`.
    """

    tokens: Int[Array, "batch new"]
    """Generated ids; a row that stopped is filled up with its stop token."""
    lengths: Int[Array, " batch"]
    """How many ids of each row were generated, the stop token included."""
    finished: Bool[Array, " batch"]
    """Which rows reached a stop token."""
    cache: Cache
    """The model's cache, with a leading `batch` axis on every array."""
    logits: Float[Array, "batch vocab"]
    """Logits for the token that would come next."""
    keys: Key[Array, " batch"]
    """The random state of every row."""
    history: Bool[Array, "batch vocab"] | None
    """Which ids each row has seen, if the sampler asked for it."""


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
    number of tokens up to the next power of two, every sampler setting, and every stop token.

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
    batch = read_prompts(prompts, lengths, model.vocab_size)
    capacity = _capacity(max_new_tokens)
    stops = read_stop_tokens(stop_token, model.vocab_size)
    keys = _row_keys(sampler, key, batch.size)
    if cache is not None:
        cache = jax.tree.map(jnp.copy, _check_cache(model, cache, batch.size))
    result = _generate((model, sampler, batch, stops, _limit(max_new_tokens), keys), capacity, cache)
    return _finish(result, max_new_tokens)


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
    _check_cache(model, generation.cache, generation.finished.shape[0])
    generation = jax.tree.map(jnp.copy, _last_token(generation))
    result = _resume((model, sampler, stops, _limit(max_new_tokens)), capacity, generation)
    return _finish(result, max_new_tokens)


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
    batch = read_prompts([prompt] if np.ndim(prompt) == 1 else prompt, None, model.vocab_size)
    if batch.size != 1:
        raise ValueError(f"`prompt` must be one sequence of ids, got {batch.size}. Use `generate` for a batch.")
    stops = read_stop_tokens(stop_token, model.vocab_size)
    keys = _row_keys(sampler, key, 1)

    def tokens() -> Iterator[int]:
        left, ask = max_new_tokens, 1
        result = _generate((model, sampler, batch, stops, _limit(0), keys), 0, None)
        while left > 0 and not bool(result.finished[0]):
            ask = min(ask, left)
            result = _resume((model, sampler, stops, _limit(ask)), _STREAM_TOKENS, _last_token(result))
            result = _finish(result, ask)
            yield from np.asarray(result.tokens)[0, : int(result.lengths[0])].tolist()
            left, ask = left - ask, _STREAM_TOKENS

    return tokens()


@eqx.filter_jit(donate="all-except-first")
def _generate(inputs, capacity: int, cache):
    model, sampler, batch, stops, limit, keys = inputs
    if cache is None:
        single = model.init_cache()
        cache = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch.size, *x.shape)), single)
    logits, cache = _consume(model, batch, cache)
    start = Generation(
        tokens=jnp.zeros((batch.size, 1), jnp.int32),
        lengths=jnp.zeros(batch.size, jnp.int32),
        finished=jnp.zeros(batch.size, bool),
        cache=cache,
        logits=logits,
        keys=keys,
        history=batch.seen(model.vocab_size) if sampler.needs_history else None,
    )
    return _decode(model, sampler, stops, limit, capacity, start)


@eqx.filter_jit(donate="all-except-first")
def _resume(inputs, capacity: int, generation: Generation):
    model, sampler, stops, limit = inputs
    return _decode(model, sampler, stops, limit, capacity, generation)


def _consume(model, batch: Prompts, cache):
    """Prefill all prompts, segment by segment, every row up to its own length."""
    time = batch.tokens.shape[1]
    segment = min(time, _SEGMENT)

    def body(carry):
        start, logits, cache = carry
        tokens = jax.lax.dynamic_slice_in_dim(batch.tokens, start, segment, axis=1)
        valid = jnp.clip(batch.lengths - start, 0, segment)
        new, cache = _per_row(lambda t, c, n: model.prefill(t, c, length=n), batch.size)(tokens, cache, valid)
        return start + segment, jnp.where(valid[:, None] > 0, new, logits), cache

    shape = jax.eval_shape(body, (0, jnp.zeros((), jnp.float32), cache))[1]
    carry = (jnp.zeros((), jnp.int32), jnp.zeros(shape.shape, shape.dtype), cache)
    if time == segment:
        carry = body(carry)
    else:
        carry = jax.lax.while_loop(lambda carry: carry[0] < jnp.max(batch.lengths), body, carry)
    return carry[1], carry[2]


def _decode(model, sampler, stops, limit, capacity: int, start: Generation) -> Generation:
    """The decode loop: a scalar predicate, the batch mapped inside, the carry updated in place.

    `start.tokens` holds one token per row, the one before those to come, and so does the loop's buffer at first.
    """
    size = start.lengths.shape[0]
    if capacity == 0:
        return eqx.tree_at(_tokens, start, (start.tokens[:, :0], jnp.zeros_like(start.lengths)))

    def running(carry):
        count, state = carry
        return (count < limit) & ~jnp.all(state.finished)

    def token(carry):
        count, state = carry
        active = ~state.finished
        keys = fresh = state.keys
        if sampler.needs_key:
            keys, fresh = jnp.unstack(jax.vmap(jax.random.split)(state.keys), axis=1)
        choose = lambda logits, key, history: sampler(logits, key=key, history=history)  # noqa: E731
        chosen = jax.vmap(choose)(state.logits, fresh, state.history)
        step = lambda token, cache, valid: model.step(token, cache, valid=valid)  # noqa: E731
        logits, cache = _per_row(step, size)(chosen, state.cache, active)
        history = state.history
        if history is not None:
            history = history | (jax.nn.one_hot(chosen, history.shape[1], dtype=bool) & active[:, None])
        return count + 1, Generation(
            tokens=state.tokens.at[:, count + 1].set(jnp.where(active, chosen, 0)),
            lengths=state.lengths + active.astype(jnp.int32),
            finished=state.finished | jnp.any(chosen[:, None] == stops[None, :], axis=1),
            cache=cache,
            logits=jnp.where(active[:, None], logits, state.logits),
            keys=jnp.where(active, keys, state.keys),
            history=history,
        )

    buffer = jnp.pad(start.tokens, ((0, 0), (0, capacity)))
    start = eqx.tree_at(_tokens, start, (buffer, jnp.zeros_like(start.lengths)))
    _, end = jax.lax.while_loop(running, token, (jnp.zeros((), jnp.int32), start))
    last = jnp.take_along_axis(end.tokens, end.lengths[:, None], axis=1)
    written = jnp.arange(capacity, dtype=jnp.int32)[None, :] < end.lengths[:, None]
    return eqx.tree_at(lambda g: g.tokens, end, jnp.where(written, end.tokens[:, 1:], last))


def _tokens(generation: Generation):
    return generation.tokens, generation.lengths


def _last_token(generation: Generation[Cache]) -> Generation[Cache]:
    """Only the last token of each row: how many there are must not matter for what is compiled next."""
    last = np.pad(np.asarray(generation.tokens), ((0, 0), (1, 0)))[:, -1:]
    return eqx.tree_at(lambda g: g.tokens, generation, jnp.asarray(last))


def _per_row(function, size: int):
    """Map over rows; a single row is not mapped, because XLA turns a matrix-vector product into one over its weights
    only when it is written for a vector."""
    if size != 1:
        return jax.vmap(function)

    def single(*arguments):
        squeezed = jax.tree.map(lambda x: x[0], arguments)
        return jax.tree.map(lambda x: x[None], function(*squeezed))

    return single


def _row_keys(sampler: AbstractSampler, key: Keys | None, size: int) -> Key[Array, " batch"]:
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
    if max_new_tokens < 0:
        raise ValueError(f"`max_new_tokens` must be at least 0, got {max_new_tokens}.")
    return 0 if max_new_tokens == 0 else bucket(max_new_tokens)


def _limit(max_new_tokens: int) -> Int[Array, ""]:
    return jnp.asarray(max_new_tokens, jnp.int32)


def _check_cache(model, cache, size: int):
    expected = eqx.filter_eval_shape(
        lambda: jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), model.init_cache())
    )
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


def _finish(result: Generation, max_new_tokens: int) -> Generation:
    bad = np.flatnonzero(~np.all(np.isfinite(np.asarray(result.logits)), axis=1))
    if bad.size:
        raise FloatingPointError(
            f"the model's logits are not finite in rows {bad.tolist()}: its weights or its cache hold NaN or infinity."
        )
    # By way of the host: a slice on the device, even `jnp.asarray`, would be compiled for every size.
    tokens = np.asarray(result.tokens)[:, :max_new_tokens]
    return eqx.tree_at(lambda g: g.tokens, result, jax.device_put(tokens))
