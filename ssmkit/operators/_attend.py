"""Softmax attention over given keys and values."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Shaped

from .._products import product


_MASKED = -1e30  # what a float32 softmax makes exactly zero


class Tokens(NamedTuple):
    """The keys, values, position and sequence number of every token; the number is -1 for entries without a token."""

    keys: Float[Array, "time groups dim"]
    values: Float[Array, "time groups dim"]
    position: Int[Array, " time"]
    sequence: Int[Array, " time"]


def attend(
    query: Float[Array, "query heads dim"],
    keys: Float[Array, "groups key dim"],
    values: Float[Array, "groups key dim"],
    seen: Bool[Array, "query key"],
    scale: float,
    softcapping: float | None,
) -> Float[Array, "query heads dim"]:
    """The mean of the values that each query sees, weighted by the softmax of its products with their keys.

    **Arguments:**

    - `query`, `keys`, `values`: groups of neighbouring heads share keys and values.
    - `seen`: which keys each query sees. A query that sees no key gets the mean of all values.
    - `scale`, `softcapping`: as for `ssmkit.Attention`.
    """
    scores = scores_of(query, keys, seen, scale, softcapping)
    return weighted(jax.nn.softmax(scores, axis=-1), values, query.dtype)


def scores_of(
    query: Float[Array, "query heads dim"],
    keys: Float[Array, "groups key dim"],
    seen: Bool[Array, "query key"],
    scale: float,
    softcapping: float | None,
) -> Float[Array, "groups members query key"]:
    """The products of queries and keys, capped. They are so low for keys that are not seen that their weight is 0."""
    (count, _, dim), groups = query.shape, keys.shape[0]
    # One matrix of queries per group, so that keys and values are read as they lie.
    grouped = jnp.reshape(query, (count, groups, -1, dim))
    rows = jnp.reshape(jnp.transpose(grouped, (1, 2, 0, 3)), (groups, -1, dim))
    scores = scale * product("grd,gsd->grs", rows, keys.astype(query.dtype))
    if softcapping is not None:
        scores = softcapping * jnp.tanh(scores / softcapping)
    scores = jnp.reshape(scores, (groups, -1, count, scores.shape[-1]))
    return jnp.where(seen[None, None], scores, _MASKED)


def weighted(
    weights: Float[Array, "groups members query key"], values: Float[Array, "groups key dim"], dtype: DTypeLike
) -> Float[Array, "query heads dim"]:
    """The sums of weighted values."""
    (groups, _, count, _), dim = weights.shape, values.shape[-1]
    y = product("grs,gsd->grd", jnp.reshape(weights, (groups, -1, weights.shape[-1])), values.astype(dtype))
    return jnp.reshape(jnp.transpose(jnp.reshape(y, (groups, -1, count, dim)), (2, 0, 1, 3)), (count, -1, dim))


def attend_in_bands(
    query: Float[Array, "time heads dim"], old: Tokens, new: Tokens, attend: Callable[..., Array]
) -> Float[Array, "time heads dim"]:
    """Attend in a window of `W` tokens, in blocks of at most `W` queries: memory grows with `time`, not its square.

    **Arguments:**

    - `query`: the queries of the new tokens.
    - `old`: the `W` tokens before the new tokens, in order.
    - `new`: the new tokens.
    - `attend`: `attend(query, keys, values, seen)`.
    """
    window, time = old.keys.shape[0], query.shape[0]
    size = min(window, time)
    blocks = -(-time // size)
    new = Tokens(*[padded(x, blocks * size, fill) for x, fill in zip(new, (0, 0, 0, -1), strict=True)])
    columns = Tokens(*[_overlapping(jnp.concatenate([a, b]), blocks, window) for a, b in zip(old, new, strict=True)])
    block = lambda x: jnp.reshape(x, (blocks, size, *x.shape[1:]))

    def one(query, position, sequence, seen_by):
        behind = position[:, None] - seen_by.position[None]
        seen = (seen_by.sequence[None] == sequence[:, None]) & (behind >= 0) & (behind < window)
        keys, values = jnp.swapaxes(seen_by.keys, 0, 1), jnp.swapaxes(seen_by.values, 0, 1)
        return attend(query, keys, values, seen)

    rows = block(padded(query, blocks * size, 0)), block(new.position), block(new.sequence)
    return jnp.reshape(jax.vmap(one)(*rows, columns), (-1, *query.shape[1:]))[:time]


def padded(x: Shaped[Array, "time ..."], size: int, fill: int) -> Shaped[Array, "size ..."]:
    """The array with so many entries, of which the last ones are `fill`."""
    return jnp.pad(x, [(0, size - x.shape[0])] + [(0, 0)] * (x.ndim - 1), constant_values=fill)


def _overlapping(x: Array, blocks: int, window: int) -> Array:
    """The `window` entries before each block, followed by the block. If there are several blocks, each has `window`."""
    if blocks == 1:
        return x[None]
    parts = jnp.reshape(x, (blocks + 1, window, *x.shape[1:]))
    return jnp.concatenate([parts[:-1], parts[1:]], axis=1)
