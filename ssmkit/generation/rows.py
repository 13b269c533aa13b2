"""Rows: many sequences side by side, along axis 0 of every array.

Any pytree with one entry per sequence is rows: caches, `ssmkit.Rows`, `ssmkit.Request`. Leaves that are not arrays are
shared by all rows.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from .._sharding import explicit_sharding


Tree = TypeVar("Tree")


def init(model: Any, n: int) -> Any:
    """Empty caches of `n` sequences: `model.init_cache()`, with a leading `batch` axis on every array.

    **Arguments:**

    - `model`: a language model or a mixer.
    - `n`: the number of rows.
    """
    return fork(model.init_cache(), n)


def take(rows: Tree, i: int | Int[Array, "*some"]) -> Tree:
    """Row `i`, without the batch axis; or several rows, if `i` is an array of integers.

    **Arguments:**

    - `rows`: any pytree with a leading `batch` axis on every array.
    - `i`: the index, or several; it may be traced, and must then lie within the rows.

    **Raises:** `ValueError` when there is no such row.
    """
    _check_index(rows, i)
    return _map(lambda x: _taken(x, i), rows)


def put(rows: Tree, i: int | Int[Array, "*some"], row: Tree) -> Tree:
    """The rows with `row` in place of row `i`; all other rows stay unchanged, bit for bit.

    **Arguments:**

    - `rows`, `i`: as `take`.
    - `row`: the new value of `take(rows, i)`.

    **Raises:** `ValueError` when there is no such row, or `row` has another structure, shape or dtype.
    """
    _check_index(rows, i)
    expected = jax.eval_shape(lambda rows: _map(lambda x: _taken(x, i), rows), eqx.filter(rows, _is_array))
    _check_same("row", eqx.filter(row, _is_array), expected)
    return _map(lambda x, y: _put(jnp.asarray(x), y, i), rows, row)


def fork(row: Tree, n: int) -> Tree:
    """`n` copies of one sequence, side by side.

    **Arguments:**

    - `row`: any pytree of arrays, such as `model.init_cache()` or `take(rows, i)`.
    - `n`: the number of copies.

    **Returns:** the same pytree, with a leading `batch` axis of `n` on every array.

    **Raises:** `ValueError` when `n` is not a number of rows.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"`n` must be a number of rows, an integer of at least 0, got {n!r}.")
    return _map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), row)


def where(mask: Bool[Array, " batch"], a: Tree, b: Tree) -> Tree:
    """Choose row by row: the row of `a` where `mask` is true, and the row of `b` elsewhere."""

    def choose(x, y):
        return jnp.where(jnp.reshape(mask, (-1,) + (1,) * (jnp.ndim(x) - 1)), x, y)

    return _map(choose, a, b)


def each(function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """Turn a function of one sequence into a function of rows.

    **Arguments:**

    - `function`: a function of arrays, or pytrees of arrays, of one sequence.
    - `shared`: the number of leading arguments that all rows share.
    """
    return lambda *arguments: jax.vmap(function, [None] * shared + [0] * (len(arguments) - shared))(*arguments)


def resized(rows: Tree, size: int) -> Tree:
    """The first `size` rows. If there are fewer, the last row is repeated."""
    return _map(lambda x: _taken(x, jnp.minimum(jnp.arange(size), x.shape[0] - 1)), rows)


# A single row is not mapped, and inside loops it has no batch axis: XLA turns a matrix-vector product into one over
# its weights only when it is written for a vector, and updates a state in place only where its shape is that of the
# loop's.


def inside(rows: Tree, size: int) -> Tree:
    """Rows in the form that `run` takes: a single row has no batch axis."""
    return take(rows, 0) if size == 1 else rows


def outside(rows: Tree, size: int) -> Tree:
    """Undo `inside`."""
    return _map(lambda x: jnp.expand_dims(x, 0), rows) if size == 1 else rows


def run(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """Advance `size` rows by a function `(tokens, cache, valid) -> (logits, cache)` of one row; caches are `inside`."""
    if size != 1:
        return each(function)

    def single(tokens, cache, valid):
        logits, cache = function(tokens[0], cache, valid[0])
        return logits[None], cache

    return single


# On a mesh with explicit axes, JAX asks for the sharding of what is indexed.


def _taken(x: Any, i: Any) -> Any:
    """Row `i`, or several; every device along `data` has them."""
    own = explicit_sharding(x)
    if own is None:
        return x[i]
    spec = PartitionSpec(*[None] * jnp.ndim(i), *own.spec[1:])
    return _laid_out(lambda x, i: x[i], NamedSharding(own.mesh, spec))(x, i)


def _put(x: Array, y: Any, i: Any) -> Array:
    own = explicit_sharding(x)
    put = lambda x, y, i: x.at[i].set(y)
    return put(x, y, i) if own is None else _laid_out(put, own)(x, y, i)


def _laid_out(function: Callable[..., Any], sharding: NamedSharding) -> Callable[..., Any]:
    return jax.sharding.auto_axes(function, out_sharding=sharding)  # pyright: ignore[reportReturnType]


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray)


def _map(function: Callable[..., Any], tree: Tree, *others: Any) -> Tree:
    """Map a function over the arrays of a tree, and keep its other leaves."""
    return jax.tree.map(lambda x, *rest: function(x, *rest) if _is_array(x) else x, tree, *others)


def _check_index(rows: Any, i: Any) -> None:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(rows) if _is_array(leaf)}
    if len(sizes) > 1 or () in sizes:
        raise ValueError(
            f"`rows` must have one leading batch axis on every array, the same for all, got sizes {sorted(sizes)}."
        )
    for (size,) in sizes:
        if isinstance(i, int | np.integer) and not 0 <= i < size:
            raise ValueError(f"`i` must be a row in [0, {size}), got {i}.")


def _check_same(name: str, got: Any, expected: Any) -> None:
    if jax.tree.structure(got) != jax.tree.structure(expected):
        raise ValueError(
            f"`{name}` must have the structure of a row, {jax.tree.structure(expected)}, got {jax.tree.structure(got)}."
        )
    for (path, want), leaf in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        form = lambda x: f"{jnp.result_type(x)}{jnp.shape(x)}"
        if form(leaf) != form(want):
            raise ValueError(
                f"`{name}` must have the shapes and dtypes of a row: expected {form(want)}, got {form(leaf)} at "
                f"`{jax.tree_util.keystr(path) or name}`. Rows with attention need the same room: `reserve` it."
            )
