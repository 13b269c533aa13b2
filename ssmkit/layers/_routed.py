"""Experts of tokens: every token meets the experts that a router chose for it, and no other matrix is read.

The tokens of each expert are taken together, in tiles of equally many, so that an expert's matrices are read once for
many tokens. No token is dropped, however many choose the same expert. A loop runs over the tiles that there are. Its
derivatives are another loop over the same tiles, which computes each tile again; memory is linear in tokens.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int

from .._batching import mappable
from ._experts import Experts
from ._matrix import one_of


_FEWEST, _MOST = 8, 128  # tokens of a tile


def routed(
    experts: Experts,
    x: Float[Array, "tokens width"],
    chosen: Int[Array, "tokens chosen"],
    weights: Float[Array, "tokens chosen"],
) -> Float[Array, "tokens width"]:
    """The weighted sum of the outputs of every token's experts.

    Rows that come from `jax.vmap` are computed together. Reverse-mode derivatives exist in everything except `chosen`.
    """
    if experts.first is not None:
        chosen = chosen + experts.first
        experts = eqx.tree_at(lambda experts: experts.first, experts, None)
    arrays, constant = eqx.partition(experts, eqx.is_inexact_array)
    return _routed(arrays, constant, x, chosen, weights)


@jax.custom_vjp
def _routed(arrays, constant, x, chosen, weights):
    return _summed((arrays, constant), x, chosen, weights)


def _routed_forward(arrays, constant, x, chosen, weights):
    return _routed(arrays, constant, x, chosen, weights), (arrays, constant, x, chosen, weights)


def _routed_backward(saved, derivative):
    arrays, constant, x, chosen, weights = saved
    d_arrays, d_x, d_weights = _derivatives((arrays, constant), x, chosen, weights, derivative)
    return d_arrays, None, d_x, None, d_weights


_routed.defvjp(_routed_forward, _routed_backward)


class _Tiles(NamedTuple):
    """The tokens, sorted by expert, in tiles that belong to one expert each."""

    rows: int
    """The number of tokens of a tile; the last tile of an expert may hold fewer."""
    order: Int[Array, " choices"]
    """The choices, `token * chosen + i`, sorted by expert."""
    ends: Int[Array, " experts"]
    """The number of choices of all experts up to this one."""
    tile_ends: Int[Array, " experts"]
    """The number of tiles of all experts up to this one."""

    @classmethod
    def of(cls, chosen: Int[Array, "tokens chosen"], experts: int) -> "_Tiles":
        flat = jnp.reshape(chosen, -1)
        rows = _FEWEST if export.is_symbolic_dim(flat.size) else _rows_of_tile(flat.size, experts)
        counts = jnp.sum(flat[:, None] == jnp.arange(experts, dtype=flat.dtype)[None], axis=0, dtype=jnp.int32)
        tiles = (counts + (rows - 1)) // rows
        order = jnp.argsort(flat, stable=True).astype(jnp.int32)
        return cls(rows, order, jnp.cumsum(counts, dtype=jnp.int32), jnp.cumsum(tiles, dtype=jnp.int32))

    @property
    def number(self) -> Int[Array, ""]:
        """The number of tiles."""
        return self.tile_ends[-1]

    def tile(self, index: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, " rows"], Array]:
        """The expert of a tile, its choices, and which of them it really has. Those are first, and increase."""
        expert = jnp.sum(index >= self.tile_ends, dtype=jnp.int32)
        before = lambda ends: jnp.where(expert == 0, 0, ends[jnp.maximum(expert - 1, 0)])
        first = before(self.ends) + (index - before(self.tile_ends)) * self.rows
        places = first + jnp.arange(self.rows, dtype=jnp.int32)
        return expert, self.order[jnp.minimum(places, self.order.size - 1)], places < self.ends[expert]


def _rows_of_tile(choices: int, experts: int) -> int:
    """About as many tokens as an expert has on average."""
    rows = _FEWEST
    while rows < _MOST and rows * experts < choices:
        rows *= 2
    return rows


def _sum(shared, x, chosen, weights):
    """`_routed` for the tokens of one row, or of all rows together."""
    experts = eqx.combine(*shared)
    if x.shape[0] == 1:
        return _sum_of_one(experts, x[0], chosen[0], weights[0])[None]
    tiles, per_token = _Tiles.of(chosen, experts.up.weight.shape[0]), chosen.shape[1]
    flat = jnp.reshape(weights, -1)

    def add(index, total):
        expert, choices, real = tiles.tile(index)
        tokens = choices // per_token
        outputs = _weighted(experts.one(expert, x[tokens]), jnp.where(real, flat[choices], 0))
        return _add_at(total, tokens, real, outputs)

    return jax.lax.fori_loop(0, tiles.number, add, _zeros_like_outputs(experts, x))


def _sum_of_one(experts, x, chosen, weights):
    """One token: a loop over its experts."""

    def add(index, total):
        return total + _weighted(experts.one(chosen[index], x), weights[index])

    return jax.lax.fori_loop(0, chosen.shape[0], add, _zeros_like_outputs(experts, x))


def _derivatives_of_row(shared, x, chosen, weights, derivative):
    """The derivatives of `_sum` in the arrays of the experts, in `x` and in `weights`, times `derivative`."""
    arrays, constant = shared
    tiles, per_token = _Tiles.of(chosen, eqx.combine(arrays, constant).up.weight.shape[0]), chosen.shape[1]
    flat = jnp.reshape(weights, -1)

    def add(index, totals):
        d_arrays, d_x, d_flat = totals
        expert, choices, real = tiles.tile(index)
        tokens = choices // per_token
        run = lambda arrays, x, weights: _weighted(eqx.combine(arrays, one_of(constant, expert))(x), weights)
        _, pull = jax.vjp(run, one_of(arrays, expert), x[tokens], flat[choices])
        d_one, d_rows, d_choices = pull(jnp.where(real[:, None], derivative[tokens], 0))
        d_arrays = jax.tree.map(lambda all, own: all.at[expert].add(own), d_arrays, d_one)
        return d_arrays, _add_at(d_x, tokens, real, d_rows), _add_at(d_flat, choices, real, d_choices)

    zeros = jax.tree.map(jnp.zeros_like, (arrays, x, flat))
    d_arrays, d_x, d_flat = jax.lax.fori_loop(0, tiles.number, add, zeros)
    return d_arrays, d_x, jnp.reshape(d_flat, weights.shape)


def _weighted(outputs, weights):
    return outputs * jnp.broadcast_to(jnp.expand_dims(weights, -1).astype(outputs.dtype), outputs.shape)


def _zeros_like_outputs(experts: Experts, x):
    return jnp.zeros(x.shape, jax.eval_shape(experts.one, jax.ShapeDtypeStruct((), jnp.int32), x).dtype)


def _add_at(total, places, real, values):
    """Add the real values at their places, which are distinct."""
    places = jnp.where(real, places, total.shape[0] + jnp.arange(places.shape[0], dtype=jnp.int32))
    options = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
    return total.at[places].add(values.astype(total.dtype), **options)


def _of_all_rows(shared, x, chosen, weights):
    flat = lambda rows: jnp.reshape(rows, (-1, *rows.shape[2:]))
    total = _sum(shared, flat(x), flat(chosen), flat(weights))
    return jnp.reshape(total, (*x.shape[:-1], -1))


def _derivatives_of_rows(shared, *rows):
    return jax.lax.map(lambda row: _derivatives_of_row(shared, *row), rows)


_summed = mappable(_sum, _of_all_rows)
_derivatives = mappable(_derivatives_of_row, _derivatives_of_rows)
