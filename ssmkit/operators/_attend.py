"""Softmax attention to given keys and values: all scores at once where they are few, and piece by piece elsewhere."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._products import product


MASKED = -1e30  # what a float32 softmax makes exactly zero
FEW = 1 << 19  # up to so many scores of all heads, one matrix is as quick as pieces


class Tokens(NamedTuple):
    """The keys, values, position and sequence number of every token; the number is -1 for entries without a token."""

    keys: Float[Array, "groups time dim"]
    values: Float[Array, "groups time dim"]
    position: Int[Array, " time"]
    sequence: Int[Array, " time"]


class Queries(NamedTuple):
    """The queries, position and sequence number of every token; the number is negative for one that needs no output."""

    query: Float[Array, "time groups members dim"]
    position: Int[Array, " time"]
    sequence: Int[Array, " time"]


class Scoring(NamedTuple):
    """What attention makes of a query and a key. The fields are as for `ssmkit.Attention`."""

    scale: float
    softcapping: float | None
    window: int | None


def grouped(query: Float[Array, "time heads dim"], groups: int) -> Float[Array, "time groups members dim"]:
    """The queries with an axis of groups of neighbouring heads, which share keys and values."""
    time, heads, dim = query.shape
    return jnp.reshape(query, (time, groups, heads // groups, dim))


def ungrouped(x: Float[Array, "time groups members dim"]) -> Float[Array, "time heads dim"]:
    """The inverse of `grouped`."""
    time, groups, members, dim = x.shape
    return jnp.reshape(x, (time, groups * members, dim))


def by_group(x: Float[Array, "time groups members *dim"]) -> Float[Array, "groups members time *dim"]:
    """The queries of each group together, so that its keys and values are read as they lie."""
    return jnp.moveaxis(x, 0, 2)


def by_time(x: Float[Array, "groups members time *dim"]) -> Float[Array, "time groups members *dim"]:
    """The inverse of `by_group`."""
    return jnp.moveaxis(x, 2, 0)


def are_few(queries: Queries, sources: Sequence[Tokens]) -> bool:
    """Whether all scores may exist at once."""
    time, groups, members, _ = queries.query.shape
    return groups * members * time * sum(tokens.keys.shape[1] for tokens in sources) <= FEW


def attend_at_once(
    queries: Queries, sources: Sequence[Tokens], scoring: Scoring
) -> Float[Array, "time groups members dim"]:
    """The mean of the values that each query sees, weighted by the softmax of its products with their keys.

    A query that sees no key gets the mean of all values.

    **Arguments:**

    - `queries`: the queries.
    - `sources`: one or several arrays of tokens.
    - `scoring`: how the products count.
    """
    keys, values = (jnp.concatenate(arrays, axis=1) for arrays in ([x[i] for x in sources] for i in (0, 1)))
    position, sequence = (jnp.concatenate(arrays) for arrays in ([x[i] for x in sources] for i in (2, 3)))
    seen = sees(queries, Tokens(keys, values, position, sequence), scoring.window)
    return attend_to_seen(queries.query, keys, values, seen, scoring)


def attend_to_seen(
    query: Float[Array, "query groups members dim"],
    keys: Float[Array, "groups key dim"],
    values: Float[Array, "groups key dim"],
    seen: Bool[Array, "query key"],
    scoring: Scoring,
) -> Float[Array, "query groups members dim"]:
    """As `attend_at_once`, where it is known which keys each query sees."""
    return by_time(weighted(jax.nn.softmax(scores_of(by_group(query), keys, seen, scoring), axis=-1), values))


def sees(queries: Queries, tokens: Tokens, window: int | None) -> Bool[Array, "query key"]:
    """Which tokens each query sees: those of its own sequence that are not after it, and not before its window."""
    behind = queries.position[:, None] - tokens.position[None]
    seen = (queries.sequence[:, None] == tokens.sequence[None]) & (behind >= 0)
    return seen if window is None else seen & (behind < window)


def scores_of(
    query: Float[Array, "groups members query dim"],
    keys: Float[Array, "groups key dim"],
    seen: Bool[Array, "query key"],
    scoring: Scoring,
) -> Float[Array, "groups members query key"]:
    """The products of queries and keys, capped. They are so low for keys that are not seen that their weight is 0."""
    groups, members, count, dim = query.shape
    rows = jnp.reshape(query, (groups, members * count, dim))
    scores = scoring.scale * product("grd,gsd->grs", rows, keys.astype(query.dtype))
    if scoring.softcapping is not None:
        scores = scoring.softcapping * jnp.tanh(scores / scoring.softcapping)
    return jnp.where(seen, jnp.reshape(scores, (groups, members, count, -1)), MASKED)


def weighted(
    weights: Float[Array, "groups members query key"], values: Float[Array, "groups key dim"]
) -> Float[Array, "groups members query dim"]:
    """The sums of weighted values."""
    groups, members, count, keys = weights.shape
    rows = jnp.reshape(weights, (groups, members * count, keys))
    return jnp.reshape(product("grs,gsd->grd", rows, values.astype(weights.dtype)), (groups, members, count, -1))
