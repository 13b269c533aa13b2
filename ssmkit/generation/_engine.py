"""The engine's device side. It owns the only decode loop, and works with every model."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from .._extent import Extent
from .._sharding import axis_size, over_sequence, undivided
from ..kernels._platform import platform
from . import rows
from ._keys import plain_keys
from ._prompts import Prompts
from ._records import empty, filled, of_token
from ._requests import Request
from ._state import Generation, Rows


# Prompts are consumed in pieces: the memory of a prefill does not grow with the prompt. A row's piece has at most this
# many tokens for each device along the mesh's axis `sequence`. An accelerator needs more to be busy, in all of its rows
# together: the kernels of an H100 then take 39 % less time for 2,048 tokens of the 130m geometry, and 16 % less at 2.7b
# (`docs/platforms.md`).
_PIECE = 512
_ACCELERATOR_PIECES = 2048


class Inputs(eqx.Module):
    """The arguments that the engine reads without consuming them."""

    model: Any
    request: Request
    prompts: Prompts | None = None
    keys: Key[Array, " batch"] | None = None
    log_probs: int | None = None
    """The number of most probable tokens whose log-probabilities are kept, beside those of chosen tokens; or `None`."""


@eqx.filter_jit(donate="all-except-first")
def begin(inputs: Inputs, capacity: int, cache: Any) -> tuple[Generation, Bool[Array, " batch"]]:
    """Consume prompts, then decode, in one executable.

    **Arguments:**

    - `inputs`: the inputs with prompts, and with a key per row if a sampler needs one.
    - `capacity`: static; the largest number of tokens that this executable can generate.
    - `cache`: donated, with room for the prompts and the new tokens; `None` for an empty cache.

    **Returns:** a `Generation` with a buffer of `capacity` tokens, and whether each row's last logits are finite.
    """
    model, prompts = inputs.model, inputs.prompts
    assert prompts is not None
    keys, key_kind = plain_keys(inputs.keys, prompts.size)
    if cache is None:
        cache = model.reserve(rows.init(model, prompts.size), prompts.tokens.shape[1] + capacity)
    logits, cache = _consume(model, prompts, cache)
    last = jnp.take_along_axis(prompts.tokens, jnp.maximum(prompts.lengths, 1)[:, None] - 1, axis=1)[:, 0]
    start = Rows(
        cache=cache,
        logits=logits,
        keys=keys,
        history=prompts.seen(model.vocab_size) if inputs.request.sampler.needs_history else None,
        finished=prompts.lengths == 0,
        last=last,
        consumed=jnp.asarray(prompts.lengths),
        key_kind=key_kind,
    )
    return _decode(inputs, capacity, start)


@eqx.filter_jit(donate="all-except-first")
def proceed(inputs: Inputs, capacity: int, start: Rows) -> tuple[Generation, Bool[Array, " batch"]]:
    """Decode, in one executable.

    **Arguments:**

    - `inputs`, `capacity`: as `begin`.
    - `start`: donated; its cache has room for the new tokens.

    **Returns:** as `begin`.
    """
    return _decode(inputs, capacity, start)


def _consume(model, prompts: Prompts, cache):
    """Prefill all prompts piece by piece, every row up to its own length."""
    size, time = prompts.tokens.shape
    piece = min(time, _piece(size))
    prefill = rows.run(lambda tokens, cache, length: model.prefill(tokens, cache, Extent(length=length)), size)

    def body(carry):
        start, logits, cache = carry
        tokens = over_sequence(jax.lax.dynamic_slice_in_dim(prompts.tokens, start, piece, axis=1), axis=1)
        valid = jnp.clip(prompts.lengths - start, 0, piece)
        new, cache = prefill(tokens, cache, valid)
        return start + piece, rows.where(valid > 0, new, logits), cache

    cache = rows.inside(cache, size)
    shape = jax.eval_shape(lambda cache: prefill(prompts.tokens[:, :piece], cache, prompts.lengths)[0], cache)
    carry = (jnp.zeros((), jnp.int32), jnp.zeros(shape.shape, shape.dtype), cache)
    if time == piece:
        carry = body(carry)
    else:
        carry = jax.lax.while_loop(lambda carry: carry[0] < jnp.max(prompts.lengths), body, carry)
    return carry[1], rows.outside(carry[2], size)


def _piece(size: int) -> int:
    """The number of tokens of a piece of `size` rows. It divides the length of every longer prompt (`bucket`)."""
    rows_of_device = max(1, size // axis_size("data"))
    busy = _PIECE if platform() == "cpu" else max(_PIECE, _ACCELERATOR_PIECES >> (rows_of_device - 1).bit_length())
    return busy * axis_size("sequence")


def _decode(inputs: Inputs, capacity: int, start: Rows) -> tuple[Generation, Bool[Array, " batch"]]:
    """The decode loop: a scalar predicate, the rows mapped inside, the carry updated in place."""
    model, request, size = inputs.model, inputs.request, start.last.shape[0]
    advance = rows.run(lambda token, cache, valid: model.step(token, cache, valid=valid), size)
    settings, kind = eqx.partition(request.sampler, eqx.is_array)
    choose = rows.each(lambda own, logits, key, history: eqx.combine(own, kind)(logits, key=key, history=history))

    def active(count, state):
        return ~state.finished & (count < request.limits)

    def running(carry):
        count, _, state = carry
        return jnp.any(active(count, state))

    def token(carry):
        count, records, state = carry
        live = active(count, state)
        keys, fresh = state.keys, None
        if request.sampler.needs_key:
            split = jax.vmap(jax.random.split)(jax.random.wrap_key_data(state.keys, impl=state.key_kind))
            keys, fresh = jax.random.key_data(split[:, 0]), split[:, 1]
        # What reads the logits many times would each time add over the devices of a mesh, unless each has them all.
        is_read_often = request.sampler.needs_key or inputs.log_probs is not None
        readable = undivided(state.logits, 1, "model") if is_read_often else state.logits
        chosen = choose(settings, readable, fresh, state.history)
        logits, cache = advance(chosen, state.cache, live)
        history = state.history
        if history is not None:
            history = history | (jax.nn.one_hot(chosen, history.shape[1], dtype=bool) & live[:, None])
        stopped = live & jnp.any(chosen[:, None] == request.stops, axis=1)
        end = Rows(
            cache=cache,
            logits=rows.where(live, logits, state.logits),
            keys=rows.where(live, keys, state.keys),
            history=history,
            finished=state.finished | stopped,
            last=rows.where(live, chosen, state.last),
            consumed=state.consumed + live.astype(jnp.int32),
            key_kind=state.key_kind,
        )
        new = of_token(end.last, readable, inputs.log_probs)
        return count + 1, jax.tree.map(lambda record, x: record.at[:, count].set(x), records, new), end

    start_inside = dataclasses.replace(start, cache=rows.inside(start.cache, size))
    carry = (jnp.zeros((), jnp.int32), empty(size, capacity, inputs.log_probs), start_inside)
    if capacity > 0:
        carry = jax.lax.while_loop(running, token, carry)
    _, records, end = carry
    lengths = end.consumed - start.consumed
    generation = Generation(
        **filled(records, lengths, end.last)._asdict(),
        lengths=lengths,
        rows=dataclasses.replace(end, cache=rows.outside(end.cache, size)),
    )
    return generation, jnp.all(jnp.isfinite(end.logits), axis=1)
