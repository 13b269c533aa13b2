"""Softmax attention piece by piece: pieces of queries meet pieces of keys, and never is there a matrix of all scores.

Every query keeps the largest score so far, and sums relative to it (arXiv 1805.02867, 2205.14135). The backward pass
computes the scores again. Pieces of keys that no query of a piece sees are left out.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from .._products import product
from ._attend import MASKED, Queries, Scoring, Tokens, by_group, by_time, scores_of, sees, weighted


_SIZE = 256  # tokens in a piece; fewer in a narrow window
_LEAST = 64


class Sums(NamedTuple):
    """The softmax over the keys so far: the largest score, and sums relative to it. `piece` is an axis of pieces."""

    largest: Float[Array, "piece groups members query"]
    weights: Float[Array, "piece groups members query"]
    values: Float[Array, "piece groups members query dim"]


def cut(x: Array, fill: int, scoring: Scoring) -> Array:
    """The array in pieces of equal size along the axis of queries, which is the first. The last piece is filled up."""
    time = x.shape[0]
    count = -(-time // _size(scoring))
    size = -(-time // count)
    x = jnp.pad(x, [(0, count * size - time), *[(0, 0)] * (x.ndim - 1)], constant_values=fill)
    return jnp.reshape(x, (count, size, *x.shape[1:]))


def joined(x: Array, time: int) -> Array:
    """The inverse of `cut`, for so many queries."""
    return jnp.reshape(x, (-1, *x.shape[2:]))[:time]


def in_pieces(queries: Queries, scoring: Scoring) -> Queries:
    """The queries, cut."""
    return Queries(*[cut(x, fill, scoring) for x, fill in zip(queries, (0, 0, -2), strict=True)])


def added(sums: Sums | None, queries: Queries, sources: Sequence[Tokens], scoring: Scoring) -> Sums:
    """The sums with those over more keys; `None` are the sums before the first key."""

    def one(_, piece):
        sums, queries, bounds = piece
        query = by_group(queries.query)
        if sums is None:
            none = jnp.zeros_like(query[..., 0])
            sums = Sums(jnp.full_like(none, MASKED / 2), none, jnp.zeros_like(query))
        for tokens, (first, stop) in zip(sources, bounds, strict=True):
            sums = jax.lax.fori_loop(first, stop, functools.partial(add, queries, query, tokens), sums)
        return None, sums

    def add(queries, query, tokens, index, sums):
        keys, values, seen = _piece(index, queries, tokens, scoring)
        scores = scores_of(query, keys, seen, scoring)
        largest = jnp.maximum(sums.largest, jnp.max(scores, axis=-1))
        weights, kept = jnp.exp(scores - largest[..., None]), jnp.exp(sums.largest - largest)
        total = kept * sums.weights + jnp.sum(weights, axis=-1)
        return Sums(largest, total, kept[..., None] * sums.values + weighted(weights, values))

    bounds = [_bounds(queries, tokens, scoring) for tokens in sources]
    return jax.lax.scan(one, None, (sums, queries, bounds))[1]


def results(
    sums: Sums,
) -> tuple[Float[Array, "piece query groups members dim"], Float[Array, "piece query groups members"]]:
    """The outputs, and the logarithm of every softmax's sum. A query that saw no key gets 0."""
    weights = jnp.where(sums.weights > 0, sums.weights, jnp.ones_like(sums.weights))
    y, log_sum = sums.values / weights[..., None], sums.largest + jnp.log(weights)
    return jnp.moveaxis(y, 3, 1), jnp.moveaxis(log_sum, 3, 1)


class Saved(NamedTuple):
    """What the backward pass knows of every query: its gradient, that times the output, and as `results`."""

    d_y: Float[Array, "piece query groups members dim"]
    along: Float[Array, "piece query groups members"]
    log_sum: Float[Array, "piece query groups members"]


def gradients(
    d_query: Float[Array, "piece query groups members dim"],
    d_sources: Sequence[tuple[Array, Array]],
    queries: Queries,
    saved: Saved,
    sources: Sequence[Tokens],
    scoring: Scoring,
) -> tuple[Array, list[tuple[Array, Array]]]:
    """Add to the gradients in queries and in tokens' keys and values those by the pairs of them."""

    def one(d_sources, piece):
        d_query, queries, saved, bounds = piece
        query, saved, d_query = by_group(queries.query), Saved(*map(by_group, saved)), by_group(d_query)
        found = []
        for tokens, d_tokens, (first, stop) in zip(sources, d_sources, bounds, strict=True):
            more = functools.partial(add, queries, query, saved, tokens)
            d_query, d_tokens = jax.lax.fori_loop(first, stop, more, (d_query, d_tokens))
            found.append(d_tokens)
        return found, by_time(d_query)

    def add(queries, query, saved, tokens, index, carry):
        d_query, (d_keys, d_values) = carry
        keys, values, seen = _piece(index, queries, tokens, scoring)
        score = lambda query, keys: scores_of(query, keys, seen, scoring)
        scores, pull = jax.vjp(score, query, keys)
        weights = jnp.exp(scores - saved.log_sum[..., None])
        d_weights = product("gmqd,gsd->gmqs", saved.d_y, values.astype(saved.d_y.dtype))
        d_more, d_piece = pull(weights * (d_weights - saved.along[..., None]))
        d_keys = added_at(d_keys, index, d_piece)
        d_values = added_at(d_values, index, product("gmqs,gmqd->gsd", weights, saved.d_y))
        return d_query + d_more, (d_keys, d_values)

    def added_at(x, index, piece):
        start, size = _start(index, x.shape[1], scoring), piece.shape[1]
        old = jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(x, old + piece.astype(x.dtype), start, axis=1)

    bounds = [_bounds(queries, tokens, scoring) for tokens in sources]
    d_sources, d_query = jax.lax.scan(one, list(d_sources), (d_query, queries, saved, bounds))
    return d_query, d_sources


def _size(scoring: Scoring) -> int:
    return _SIZE if scoring.window is None else min(_SIZE, max(_LEAST, scoring.window))


def _start(index: Int[Array, ""], time: int, scoring: Scoring) -> Int[Array, ""]:
    """Where a piece of keys starts. The last piece has as many keys as the others, some of which are theirs."""
    size = _size(scoring)
    return jnp.minimum(index * size, max(time - size, 0))


def _piece(
    index: Int[Array, ""], queries: Queries, tokens: Tokens, scoring: Scoring
) -> tuple[Array, Array, Bool[Array, "query key"]]:
    """The keys and values of a piece, and which of them each query sees."""
    time, size = tokens.keys.shape[1], _size(scoring)
    start = _start(index, time, scoring)
    at = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, start, min(size, time), axis=axis)
    piece = Tokens(*[at(x, axis) for x, axis in zip(tokens, (1, 1, 0, 0), strict=True)])
    seen = sees(queries, piece, scoring.window)
    if time % size and time > size:
        seen &= (start + jnp.arange(size, dtype=jnp.int32) >= index * size)[None]
    return piece.keys, piece.values, seen


def _bounds(queries: Queries, tokens: Tokens, scoring: Scoring) -> tuple[Int[Array, " piece"], Int[Array, " piece"]]:
    """For each piece of queries the first piece of keys that it may see, and the one past the last.

    A piece may see another if their ranges of sequences meet, and those of positions let them.
    """
    size = _size(scoring)
    widths = (0, -tokens.position.shape[0] % size)
    position = jnp.reshape(jnp.pad(tokens.position, widths), (-1, size))
    sequence = jnp.reshape(jnp.pad(tokens.sequence, widths, constant_values=-1), (-1, size))
    far = jnp.iinfo(jnp.int32).max
    least = lambda x, there: jnp.min(jnp.where(there, x, far), axis=1)
    most = lambda x, there: jnp.max(jnp.where(there, x, -far), axis=1)
    of_keys = [f(x, sequence >= 0)[None] for x in (position, sequence) for f in (least, most)]
    there = queries.sequence >= 0
    of_queries = [f(x, there)[:, None] for x in (queries.position, queries.sequence) for f in (least, most)]
    (from_k, to_k, first_k, last_k), (from_q, to_q, first_q, last_q) = of_keys, of_queries
    may = (first_k <= last_q) & (last_k >= first_q) & (from_k <= to_q)
    if scoring.window is not None:
        may &= to_k > from_q - scoring.window
    count, any_ = may.shape[1], jnp.any(may, axis=1)
    first = jnp.where(any_, jnp.argmax(may, axis=1), 0).astype(jnp.int32)
    stop = jnp.where(any_, count - jnp.argmax(may[:, ::-1], axis=1), 0).astype(jnp.int32)
    return _of_all_rows(first, stop)


@custom_vmap
def _of_all_rows(first: Array, stop: Array) -> tuple[Array, Array]:
    """Bounds that hold for every row of a batch. Rows of one loop then read their pieces at the same place."""
    return first, stop


@_of_all_rows.def_vmap
def _(size, mapped, first, stop):
    first = jnp.min(first, axis=0) if mapped[0] else first
    stop = jnp.max(stop, axis=0) if mapped[1] else stop
    return _of_all_rows(first, stop), (False, False)
