"""Softmax attention to all tokens that a query may see, on one device or over several along the mesh axis `sequence`.

Over several devices, each holds a slice of the tokens. Queries stay where they are. Without a window, keys and values
travel around a ring of the devices (arXiv 2310.01889). The backward pass travels once more, and keys take their
gradients along, so that no device ever holds those of all slices. In a window, a device receives only the tokens
before its slice that the window reaches.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._slices import AXIS
from . import _pieces
from ._attend import Queries, Scoring, Tokens, are_few, attend_at_once, grouped, ungrouped


def attend(
    query: Float[Array, "time heads dim"],
    position: Int[Array, " time"],
    sequence: Int[Array, " time"],
    sources: tuple[Tokens, ...],
    scoring: Scoring,
) -> Float[Array, "time heads dim"]:
    """Attend to tokens that are all on this device.

    **Arguments:**

    - `query`, `position`, `sequence`: the queries, with the position and the sequence number of each.
    - `sources`: the tokens that they may see, in one or several arrays.
    - `scoring`: how the products of queries and keys count.
    """
    queries = Queries(grouped(query, sources[0].keys.shape[0]), position, sequence)
    if are_few(queries, sources):
        return ungrouped(attend_at_once(queries, sources, scoring))
    return ungrouped(_around(queries, sources[:-1], sources[-1], scoring, 1))


def attend_around(
    query: Float[Array, "time heads dim"], old: Tokens, own: Tokens, scoring: Scoring
) -> Float[Array, "time heads dim"]:
    """Attend to all earlier tokens of each query's sequence: old ones, and those of all slices.

    **Arguments:**

    - `query`: the queries of one slice.
    - `old`: tokens before all slices.
    - `own`: the tokens of the slice.
    - `scoring`: how the products of queries and keys count.
    """
    queries = Queries(grouped(query, own.keys.shape[0]), own.position, own.sequence)
    return ungrouped(_around(queries, (old,), own, scoring, jax.lax.axis_size(AXIS)))


def attend_in_window(
    query: Float[Array, "time heads dim"], old: Tokens, own: Tokens, scoring: Scoring
) -> Float[Array, "time heads dim"]:
    """Attend in a window of `W` tokens, for the queries of one slice.

    **Arguments:**

    - `query`: the queries of the slice.
    - `old`: the `W` tokens before all slices, in order.
    - `own`: the tokens of the slice.
    - `scoring`: how the products of queries and keys count.
    """
    window, size = old.keys.shape[1], own.keys.shape[1]
    reached = min(jax.lax.axis_size(AXIS) - 1, -(-window // size))  # so many slices before this one
    received = [_moved(own, by) for by in range(reached, 0, -1)]
    fresh = jnp.minimum(jax.lax.axis_index(AXIS) * size, window)  # the last so many tokens of the halo are of slices
    is_fresh = jnp.arange(window, dtype=fresh.dtype) >= window - fresh

    def halo(axis: int, old: Array, *received: Array) -> Array:
        earlier = jax.lax.dynamic_slice_in_dim(jnp.concatenate([old, old], axis), fresh, window, axis)
        later = jnp.concatenate([old, *received], axis)
        later = jax.lax.slice_in_dim(later, later.shape[axis] - window, None, axis=axis)
        shape = [1] * old.ndim
        shape[axis] = window
        return jnp.where(jnp.reshape(is_fresh, shape), later, earlier)

    pairs = zip((1, 1, 0, 0), zip(old, *received, strict=True), strict=True)
    before = Tokens(*[halo(axis, *arrays) for axis, arrays in pairs])
    return attend(query, own.position, own.sequence, (before, own), scoring)


def _moved(tree: Any, by: int = 1) -> Any:
    """The trees of the devices `by` places before."""
    devices = jax.lax.axis_size(AXIS)
    to = [(i, (i + by) % devices) for i in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, to), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _around(
    queries: Queries, still: tuple[Tokens, ...], own: Tokens, scoring: Scoring, devices: int
) -> Float[Array, "time groups members dim"]:
    """The outputs, where `still` lies on every device, and `own` travels around all of them."""
    return _forward(queries, still, own, scoring, devices)[0]


def _forward(
    queries: Queries, still: tuple[Tokens, ...], own: Tokens, scoring: Scoring, devices: int
) -> tuple[Array, Any]:
    """The outputs, and what the backward pass needs."""

    def travel(carry, _):
        sums, tokens = carry
        tokens = _moved(tokens)
        return (_pieces.added(sums, pieces, (tokens,), scoring), tokens), None

    pieces = _pieces.in_pieces(queries, scoring)
    sums = _pieces.added(None, pieces, (*still, own), scoring)
    if devices > 1:
        (sums, _), _ = jax.lax.scan(travel, (sums, own), None, length=devices - 1)
    y, log_sum = _pieces.results(sums)
    y = _pieces.joined(y, queries.position.shape[0])
    return y, (queries, still, own, y, log_sum)


def _backward(scoring: Scoring, devices: int, kept: Any, d_y: Array) -> tuple[Any, Any, Any]:
    """The gradients in queries, keys and values.

    With the softmax's sum held constant, they are those of a sum over all pairs: of a weight times the product of
    `d_y` with the value's distance from the output.
    """
    queries, still, own, y, log_sum = kept
    pieces = _pieces.in_pieces(queries, scoring)
    d_y, y = (_pieces.cut(x, 0, scoring) for x in (d_y, y))
    saved = _pieces.Saved(d_y, jnp.sum(d_y * y, axis=-1), log_sum)

    def add(d_query, d_sources, *sources):
        return _pieces.gradients(d_query, d_sources, pieces, saved, sources, scoring)

    def travel(carry, _):
        d_query, *travelling = carry
        d_own, own = _moved(tuple(travelling))
        d_query, (d_own,) = add(d_query, (d_own,), own)
        return (d_query, d_own, own), None

    zeros = [(jnp.zeros_like(tokens.keys), jnp.zeros_like(tokens.values)) for tokens in (*still, own)]
    d_query, (*d_still, d_own) = add(jnp.zeros_like(pieces.query), zeros, *still, own)
    if devices > 1:
        (d_query, d_own, _), _ = jax.lax.scan(travel, (d_query, d_own, own), None, length=devices - 1)
        d_own = _moved(d_own)
    none: Any = None  # positions have no gradients
    as_tokens: Any = lambda found: Tokens(found[0], found[1], none, none)
    d_query = _pieces.joined(d_query, queries.position.shape[0])
    return Queries(d_query, none, none), tuple(map(as_tokens, d_still)), as_tokens(d_own)


_around.defvjp(_forward, _backward)
