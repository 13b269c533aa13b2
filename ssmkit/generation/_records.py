"""The records that the decode loop keeps for each generated token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Records(NamedTuple):
    """The loop's buffers, or the record of one token, which has no `new` axis.

    Without log-probabilities, the three fields for them are `None`, and they are neither computed nor carried.
    """

    tokens: Int[Array, "batch ..."]
    log_probs: Float[Array, "batch ..."] | None = None
    top_tokens: Int[Array, "batch ... top"] | None = None
    top_log_probs: Float[Array, "batch ... top"] | None = None


def empty(size: int, capacity: int, top: int | None) -> Records:
    """Empty buffers of `size` rows for `capacity` tokens, with room for the `top` most probable tokens."""
    tokens = jnp.zeros((size, capacity), jnp.int32)
    if top is None:
        return Records(tokens)
    zeros = jnp.zeros((size, capacity, top))
    return Records(tokens, jnp.zeros((size, capacity), jnp.float32), zeros.astype(jnp.int32), zeros.astype(jnp.float32))


def of_token(chosen: Int[Array, " batch"], logits: Float[Array, "batch vocab"], top: int | None) -> Records:
    """The record of the token `chosen` by logits."""
    if top is None:
        return Records(chosen)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_probs, chosen[:, None], axis=1)[:, 0]

    # One maximum after the other, with the lowest id among equals: `top` passes, without sorting.
    def best(rest, _):
        token = jnp.argmax(rest, axis=1)
        is_token = jnp.arange(rest.shape[1], dtype=token.dtype)[None, :] == token[:, None]
        return jnp.where(is_token, -jnp.inf, rest), (token.astype(jnp.int32), jnp.max(rest, axis=1))

    _, (tokens, values) = jax.lax.scan(best, log_probs, length=top)
    return Records(chosen, own, jnp.moveaxis(tokens, 0, 1), jnp.moveaxis(values, 0, 1))


def filled(records: Records, lengths: Int[Array, " batch"], last: Int[Array, " batch"]) -> Records:
    """The buffers with the entries past each row's length set: tokens to the row's `last`, all others to 0."""
    new = jnp.arange(records.tokens.shape[1], dtype=jnp.int32)
    is_written = new[None, :] < lengths[:, None]
    zeroed = jax.tree.map(
        lambda x: jnp.where(jnp.reshape(is_written, is_written.shape + (1,) * (x.ndim - 2)), x, 0), records
    )
    return zeroed._replace(tokens=jnp.where(is_written, records.tokens, last[:, None]))
