"""The random state of every row, as plain numbers, because JAX's typed keys can neither be stored nor mixed."""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt32

from .._types import shown
from ._sampling import AbstractSampler, MixedSampler


# A user's key: one, or one per row; typed (`jax.random.key`) or raw (`jax.random.PRNGKey`).
Keys: TypeAlias = Key[Array, "*batch"] | UInt32[Array, "*batch _"]


def row_keys(key: Any, rows: int, size: int) -> Key[Array, " batch"] | None:
    """A key per row: `jax.random.fold_in(key, i)` of one key, or the given keys.

    **Arguments:**

    - `key`: the argument of the user; `None` for no randomness.
    - `rows`: the number of the user's rows.
    - `size`: the number of rows of the executable; the keys of additional rows do not matter.

    **Raises:** `ValueError` for anything but one key or one per row.
    """
    if key is None:
        return None
    try:
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        keys = key if typed else jax.random.wrap_key_data(jnp.asarray(key))
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"`key` must be made by `jax.random.key(seed)`, got {shown(key)}.") from None
    if keys.shape not in ((), (rows,)):
        raise ValueError(f"`key` must be one key or one per prompt, {rows}, got shape {keys.shape}.")
    if keys.ndim == 0:
        return _folded(keys, size)
    data = np.pad(np.asarray(jax.random.key_data(keys)), ((0, size - rows), (0, 0)), mode="edge")
    return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(keys))


def plain_keys(keys: Key[Array, " batch"] | None, size: int) -> tuple[UInt32[Array, "batch _"], str | None]:
    """Keys as plain numbers (`jax.random.key_data`), and the name of their kind; zeros and `None` without keys."""
    if keys is None:
        return jnp.zeros((size, 2), jnp.uint32), None
    return jax.random.key_data(keys), str(jax.random.key_impl(keys))


def check_key(samplers: Sequence[AbstractSampler], has_key: bool, why: str = "") -> None:
    """Check that a random sampler has a key.

    **Raises:** `ValueError` when it has none.
    """
    needing = {"Sampler" if isinstance(one, MixedSampler) else type(one).__name__ for one in samplers if one.needs_key}
    if needing and not has_key:
        raise ValueError(f"`key` is needed by {min(needing)}: {why}pass `key=jax.random.key(seed)`.")


@functools.partial(jax.jit, static_argnames="size")
def _folded(key: Key[Array, ""], size: int) -> Key[Array, " batch"]:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(size, dtype=jnp.uint32))
