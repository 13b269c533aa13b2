"""The state of attention, and the room in it."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int


LOST = 2**30  # the length of a sequence that has lost a token: more than any room
_FEWEST = 16  # the least room that is made at a time


class AttentionState(NamedTuple):
    """The keys and values of earlier tokens, and their number. Arrays may have a leading axis of batch rows."""

    keys: Float[Array, "*rows groups room dim"]
    """The rotated keys. Without a window, token `i` is at index `i`; in a window of `W`, it is at `i % W`."""
    values: Float[Array, "*rows groups room dim"]
    length: Int[Array, "*rows"]
    """The number of tokens since the last start."""


def with_room(state: AttentionState, tokens: int) -> AttentionState:
    """The state with room for more tokens.

    The room grows in steps, so that few executables are compiled: to powers of two from 16 to 1024, and above in
    quarters of them, because a step reads the whole room. If the count of earlier tokens is traced, the old room may
    be full already, so the new tokens are added to it.

    **Raises:** `ValueError` when the state has lost tokens or is damaged, and for room that no cache can have.
    """
    room = state.keys.shape[-2]
    if isinstance(state.length, Tracer):
        grown = room + tokens
    elif (used := int(jnp.max(state.length))) > room:
        raise ValueError(
            f"Attention.reserve: the cache has lost tokens: more came than its room, {room}. Start again, and reserve "
            "before tokens come."
        )
    elif (least := int(jnp.min(state.length))) < 0:
        raise ValueError(f"Attention.reserve: the cache is damaged: it says that it holds {least} tokens.")
    else:
        grown = max(room, _rounded(used + tokens))
    if grown >= LOST:
        raise ValueError(f"Attention.reserve: a cache has room for fewer than {LOST} tokens, got {tokens} more.")
    pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, grown - room), (0, 0)])
    return state if grown == room else AttentionState(pad(state.keys), pad(state.values), state.length)


def _rounded(tokens: int) -> int:
    """The room that is made for so many tokens: at most a quarter more than they need, from 1024 on."""
    step = max(_FEWEST, 1 << (tokens - 1).bit_length())
    if step > 1024:
        step //= 8
    return -(-tokens // step) * step
