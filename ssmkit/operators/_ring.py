"""Attention over several devices, each of which holds a slice of the tokens, along the mesh axis `sequence`.

Queries stay where they are. Without a window, keys and values travel around a ring of the devices, and every device
keeps the running maximum and sums of its queries' softmax (arXiv 2310.01889). The backward pass travels once more, and
keys take their gradients along, so that no device ever holds those of all slices. In a window, a device receives only
the tokens before its slice that the window reaches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._slices import AXIS
from ._attend import Tokens, attend_in_bands, padded, scores_of, weighted


_SCORES = 1 << 22  # so many scores of one head exist at once, or those of `_FEWEST` keys
_FEWEST = 128


def _moved(tree: Any, by: int = 1) -> Any:
    """The trees of the devices `by` places before."""
    devices = jax.lax.axis_size(AXIS)
    to = [(i, (i + by) % devices) for i in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, to), tree)


# In a window.


def attend_in_window(
    query: Float[Array, "time heads dim"], old: Tokens, own: Tokens, attend: Callable[..., Array]
) -> Float[Array, "time heads dim"]:
    """Attend in a window of `W` tokens, for the queries of one slice.

    **Arguments:**

    - `query`: the queries of the slice.
    - `old`: the `W` tokens before all slices, in order.
    - `own`: the tokens of the slice.
    - `attend`: `attend(query, keys, values, seen)`.
    """
    window, size = old.keys.shape[0], own.keys.shape[0]
    reached = min(jax.lax.axis_size(AXIS) - 1, -(-window // size))  # so many slices before this one
    received = [_moved(own, by) for by in range(reached, 0, -1)]
    fresh = jnp.minimum(jax.lax.axis_index(AXIS) * size, window)  # the last so many tokens of the halo are of slices
    is_fresh = jnp.arange(window, dtype=fresh.dtype) >= window - fresh

    def halo(old: Array, *received: Array) -> Array:
        earlier = jax.lax.dynamic_slice_in_dim(jnp.concatenate([old, old]), fresh, window)
        later = jnp.concatenate([old, *received])[-window:]
        return jnp.where(jnp.reshape(is_fresh, (-1,) + (1,) * (old.ndim - 1)), later, earlier)

    return attend_in_bands(query, jax.tree.map(halo, old, *received), own, attend)


# Without a window.


class _Queries(NamedTuple):
    """The queries of one slice."""

    query: Float[Array, "time heads dim"]
    position: Int[Array, " time"]
    sequence: Int[Array, " time"]


class _Sums(NamedTuple):
    """The softmax over all keys so far: the largest score, and sums relative to it."""

    largest: Float[Array, "groups members query"]
    weights: Float[Array, "groups members query"]
    values: Float[Array, "query heads dim"]


def attend_around(
    query: Float[Array, "time heads dim"], old: Tokens, own: Tokens, scale: float, softcapping: float | None
) -> Float[Array, "time heads dim"]:
    """Attend to all earlier tokens of each query's sequence: old ones, and those of all slices.

    **Arguments:**

    - `query`: the queries of one slice.
    - `old`: tokens before all slices, and behind them entries without a token.
    - `own`: the tokens of the slice.
    - `scale`, `softcapping`: as for `ssmkit.Attention`.
    """
    queries = _Queries(query, own.position, own.sequence)
    size = max(_FEWEST, _SCORES // query.shape[0])

    def cut(tokens: Tokens) -> Tokens:
        pieces = -(-tokens.keys.shape[0] // size)
        length = pieces * min(size, tokens.keys.shape[0])
        return Tokens(*[padded(x, length, fill) for x, fill in zip(tokens, (0, 0, 0, -1), strict=True)])

    return _around(queries, cut(old), cut(own), size, scale, softcapping)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _around(
    queries: _Queries, old: Tokens, own: Tokens, size: int, scale: float, softcapping: float | None
) -> Float[Array, "time heads dim"]:
    return _forward(queries, old, own, size, scale, softcapping)[0]


def _forward(
    queries: _Queries, old: Tokens, own: Tokens, size: int, scale: float, softcapping: float | None
) -> tuple[Array, Any]:
    """The outputs, and what the backward pass needs."""
    query = queries.query

    def add(sums: _Sums, _: Array, keys: Array, values: Array, seen: Array) -> _Sums:
        scores = scores_of(query, keys, seen, scale, softcapping)
        largest = jnp.maximum(sums.largest, jnp.max(scores, axis=-1))
        weights, kept = jnp.exp(scores - largest[..., None]), jnp.exp(sums.largest - largest)
        total = kept * sums.weights + jnp.sum(weights, axis=-1)
        return _Sums(largest, total, _per_query(kept) * sums.values + weighted(weights, values, query.dtype))

    def travel(carry, step):
        sums, tokens = carry
        tokens = _moved(tokens)
        return (_over_pieces(add, sums, queries, tokens, _seen_after(step, tokens), size), tokens), None

    groups, heads = own.keys.shape[1], query.shape[1]
    none = jnp.zeros((groups, heads // groups, query.shape[0]), query.dtype)
    sums = _Sums(jnp.full_like(none, -jnp.inf), none, jnp.zeros_like(query))
    sums = _over_pieces(add, sums, queries, old, jnp.sum(old.sequence >= 0, dtype=jnp.int32), size)
    sums = _over_pieces(add, sums, queries, own, own.keys.shape[0], size)
    (sums, _), _ = jax.lax.scan(travel, (sums, own), _steps())
    y = sums.values / _per_query(sums.weights)
    return y, (queries, old, own, y, sums.largest + jnp.log(sums.weights))


def _backward(size: int, scale: float, softcapping: float | None, saved: Any, d_y: Array) -> tuple[Any, Any, Any]:
    """The gradients in queries, keys and values.

    With the softmax's sum held constant, they are those of a sum over all pairs: of a weight times the product of
    `d_y` with the value's distance from the output.
    """
    queries, old, own, y, log_sum = saved
    along = jnp.sum(d_y * y, axis=-1, keepdims=True)

    def pairs(query: Array, keys: Array, values: Array, seen: Array) -> Array:
        weights = jnp.exp(scores_of(query, keys, seen, scale, softcapping) - log_sum[..., None])
        from_zero, once = (weighted(weights, of, query.dtype) for of in (values, jnp.ones_like(values[..., :1])))
        return jnp.sum(d_y * from_zero) - jnp.sum(along * once)

    def add(carry, start: Array, keys: Array, values: Array, seen: Array):
        (d_query, *d_tokens), pull = carry, jax.grad(pairs, (0, 1, 2))
        d_more, *more = pull(queries.query, keys, values, seen)
        return (d_query + d_more, *(_added_at(start, *both) for both in zip(d_tokens, more, strict=True)))

    def travel(carry, step):
        d_query, *travelling = carry
        d_keys, d_values, tokens = _moved(tuple(travelling))
        seen = _seen_after(step, tokens)
        return (*_over_pieces(add, (d_query, d_keys, d_values), queries, tokens, seen, size), tokens), None

    zeros = lambda *arrays: tuple(jnp.zeros_like(array) for array in arrays)
    count = jnp.sum(old.sequence >= 0, dtype=jnp.int32)
    none: Any = None  # positions have no gradients
    d_query, *d_old = _over_pieces(add, zeros(queries.query, old.keys, old.values), queries, old, count, size)
    carry = d_query, *zeros(own.keys, own.values)
    carry = *_over_pieces(add, carry, queries, own, own.keys.shape[0], size), own
    (d_query, *d_own, _), _ = jax.lax.scan(travel, carry, _steps())
    old_gradients, own_gradients = (Tokens(keys, values, none, none) for keys, values in (d_old, _moved(d_own)))
    return _Queries(d_query, none, none), old_gradients, own_gradients


_around.defvjp(_forward, _backward)


def _steps() -> Int[Array, " steps"]:
    return jnp.arange(1, jax.lax.axis_size(AXIS), dtype=jnp.int32)


def _seen_after(step: Int[Array, ""], tokens: Tokens) -> Int[Array, ""]:
    """How many of the tokens that travelled so many places are before this slice: all, or none."""
    return jnp.where(jax.lax.axis_index(AXIS) >= step, tokens.keys.shape[0], 0)


def _over_pieces(
    add: Callable[..., Any], carry: Any, queries: _Queries, tokens: Tokens, count: Int[Array, ""] | int, size: int
) -> Any:
    """Apply `add(carry, start, keys, values, seen)` to pieces of the first `count` tokens."""
    size = min(size, tokens.keys.shape[0])
    if size == 0:
        return carry

    def body(piece, carry):
        start = piece * size
        at = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), tokens)
        before = at.position[None] <= queries.position[:, None]
        seen = before & (at.sequence[None] == queries.sequence[:, None])
        return add(carry, start, jnp.swapaxes(at.keys, 0, 1), jnp.swapaxes(at.values, 0, 1), seen)

    return jax.lax.fori_loop(0, jnp.asarray((count + size - 1) // size, jnp.int32), body, carry)


def _added_at(start: Array, all: Float[Array, "time groups dim"], piece: Float[Array, "groups piece dim"]) -> Array:
    piece = jnp.swapaxes(piece, 0, 1)
    old = jax.lax.dynamic_slice_in_dim(all, start, piece.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(all, old + piece.astype(all.dtype), start, 0)


def _per_query(x: Float[Array, "groups members query"]) -> Float[Array, "query heads 1"]:
    return jnp.reshape(jnp.transpose(x, (2, 0, 1)), (x.shape[2], -1, 1))
