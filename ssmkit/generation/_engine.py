"""The engine's device side: it owns the batch axis and the only decode loop, and knows nothing of any model."""

import dataclasses
from typing import Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from .._extent import Extent
from ..mixers._mixer import Cache
from ._keys import plain_keys
from ._prompts import Prompts


# Prompts are consumed in segments of at most this many tokens: the memory of a prefill does not grow with the prompt.
_SEGMENT = 512


class Generation(eqx.Module, Generic[Cache]):
    """What was generated, and everything to go on from there.

    `cache` and `logits` are what consuming the prompt and `tokens[row, :lengths[row]]` gives, the stop token included:
    pass `cache` back to `generate` with a further prompt, or the whole to `resume`. All of it is arrays of numbers, so
    that it can be stored: by `ssmkit.save_cache`, or by `equinox.tree_serialise_leaves`.
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
    keys: UInt32[Array, "batch _"]
    """The random state of every row, as `jax.random.key_data` gives it; zeros if no key was ever given."""
    history: Bool[Array, "batch vocab"] | None
    """Which ids each row has seen, if the sampler asked for it."""
    key_kind: str | None = eqx.field(static=True, default=None)
    """The kind of `keys`, as `jax.random.key_impl` names it; `None` if no key was ever given."""


@eqx.filter_jit(donate="all-except-first")
def begin(inputs, capacity: int, cache):
    """Consume prompts, then decode: one executable.

    **Arguments:**

    - `inputs`: model, sampler, `Prompts`, stop tokens, how many tokens to generate, and a key per row, or `None`.
    - `capacity`: static; the most tokens that this executable can generate.
    - `cache`: donated; `None` for an empty one.

    **Returns:** a `Generation` with a buffer of `capacity` tokens.
    """
    model, sampler, batch, stops, limit, keys = inputs
    keys, key_kind = plain_keys(keys, batch.size)
    if cache is None:
        cache = empty_cache(model, batch.size)
    logits, cache = _consume(model, batch, cache)
    start = Generation(
        tokens=jnp.zeros((batch.size, 1), jnp.int32),
        lengths=jnp.zeros(batch.size, jnp.int32),
        finished=batch.lengths == 0,
        cache=cache,
        logits=logits,
        keys=keys,
        key_kind=key_kind,
        history=batch.seen(model.vocab_size) if sampler.needs_history else None,
    )
    return _decode(model, sampler, stops, limit, capacity, start)


@eqx.filter_jit(donate="all-except-first")
def proceed(inputs, capacity: int, generation: Generation):
    """Decode: one executable.

    **Arguments:**

    - `inputs`: model, sampler, stop tokens, how many tokens to generate.
    - `capacity`: as `begin`.
    - `generation`: donated; its `tokens` hold the last token of each row.

    **Returns:** as `begin`.
    """
    model, sampler, stops, limit = inputs
    return _decode(model, sampler, stops, limit, capacity, generation)


def empty_cache(model, size: int):
    """`model.init_cache()` for `size` rows: a leading `batch` axis on every array."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape)), model.init_cache())


def _consume(model, batch: Prompts, cache):
    """Prefill all prompts, segment by segment, every row up to its own length."""
    time = batch.tokens.shape[1]
    segment = min(time, _SEGMENT)

    def body(carry):
        start, logits, cache = carry
        tokens = jax.lax.dynamic_slice_in_dim(batch.tokens, start, segment, axis=1)
        valid = jnp.clip(batch.lengths - start, 0, segment)
        new, cache = _per_row(lambda t, c, n: model.prefill(t, c, Extent(length=n)), batch.size)(tokens, cache, valid)
        return start + segment, jnp.where(valid[:, None] > 0, new, logits), cache

    cache = _unbatched(cache, batch.size)
    shape = jax.eval_shape(body, (0, jnp.zeros((), jnp.float32), cache))[1]
    carry = (jnp.zeros((), jnp.int32), jnp.zeros(shape.shape, shape.dtype), cache)
    if time == segment:
        carry = body(carry)
    else:
        carry = jax.lax.while_loop(lambda carry: carry[0] < jnp.max(batch.lengths), body, carry)
    return carry[1], _batched(carry[2], batch.size)


def _decode(model, sampler, stops, limit, capacity: int, start: Generation) -> Generation:
    """The decode loop: a scalar predicate, the batch mapped inside, the carry updated in place.

    `start.tokens` holds one token per row, the one before those to come, and so does the loop's buffer at first.
    """
    size = start.lengths.shape[0]
    if capacity == 0:
        return dataclasses.replace(start, tokens=start.tokens[:, :0], lengths=jnp.zeros_like(start.lengths))

    def running(carry):
        count, state = carry
        return (count < limit) & ~jnp.all(state.finished)

    def token(carry):
        count, state = carry
        active = ~state.finished
        keys, fresh = state.keys, None
        if sampler.needs_key:
            split = jax.vmap(jax.random.split)(jax.random.wrap_key_data(state.keys, impl=state.key_kind))
            keys, fresh = jax.random.key_data(split[:, 0]), split[:, 1]
        choose = lambda logits, key, history: sampler(logits, key=key, history=history)
        chosen = jax.vmap(choose)(state.logits, fresh, state.history)
        step = lambda token, cache, valid: model.step(token, cache, valid=valid)
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
            keys=jnp.where(active[:, None], keys, state.keys),
            history=history,
            key_kind=state.key_kind,
        )

    buffer = jnp.pad(start.tokens, ((0, 0), (0, capacity)))
    cache = _unbatched(start.cache, size)
    start = dataclasses.replace(start, tokens=buffer, lengths=jnp.zeros_like(start.lengths), cache=cache)
    _, end = jax.lax.while_loop(running, token, (jnp.zeros((), jnp.int32), start))
    last = jnp.take_along_axis(end.tokens, end.lengths[:, None], axis=1)
    written = jnp.arange(capacity, dtype=jnp.int32)[None, :] < end.lengths[:, None]
    tokens = jnp.where(written, end.tokens[:, 1:], last)
    return dataclasses.replace(end, tokens=tokens, cache=_batched(end.cache, size))


# A single row is not mapped, and inside loops its cache has no batch axis: XLA turns a matrix-vector product into one
# over its weights only when it is written for a vector, and updates a state in place only where its shape is that of
# the loop's.


def _per_row(function, size: int):
    """Map a function of a row's tokens, cache and validity over rows."""
    if size != 1:
        return jax.vmap(function)

    def single(tokens, cache, valid):
        logits, cache = function(tokens[0], cache, valid[0])
        return logits[None], cache

    return single


def _unbatched(cache, size: int):
    return jax.tree.map(lambda x: x[0], cache) if size == 1 else cache


def _batched(cache, size: int):
    return jax.tree.map(lambda x: jnp.expand_dims(x, 0), cache) if size == 1 else cache
