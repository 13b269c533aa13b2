"""Checks that caches and generations fit a model."""

import functools
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from . import rows
from ._state import Generation


# The axes of the arrays of a `Generation` and its `Rows`, except the cache.
OWN_AXES = {
    "tokens": ("batch", "new"),
    "lengths": ("batch",),
    "log_probs": ("batch", "new"),
    "top_tokens": ("batch", "new", "top"),
    "top_log_probs": ("batch", "new", "top"),
}
ROWS_AXES = {
    "logits": ("batch", "vocab"),
    "keys": ("batch", "words"),
    "history": ("batch", "vocab"),
    "finished": ("batch",),
    "last": ("batch",),
    "consumed": ("batch",),
}
GENERATION_AXES = OWN_AXES | ROWS_AXES


def fields_of(generation: Generation) -> dict[str, Any]:
    """The arrays of a generation by their names, except the cache."""
    found = {name: getattr(generation, name) for name in OWN_AXES}
    found |= {name: getattr(generation.rows, name) for name in ROWS_AXES}
    return {name: array for name, array in found.items() if array is not None}


def cache_form(model: Any, size: int | None, cache: Any) -> PyTree[jax.ShapeDtypeStruct]:
    """The expected form of a cache: the structure, shapes and dtypes of the model's cache, with the given cache's room.

    **Arguments:**

    - `model`: the model of the cache.
    - `size`: the number of rows; `None` for one sequence, without a batch axis.
    - `cache`: the given cache.
    """

    leaves, structure = jax.tree.flatten(model)
    kinds = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf for leaf in leaves)
    form = functools.partial(_form, structure, kinds, size)
    empty = form(0)
    if jax.tree.structure(cache) != jax.tree.structure(empty):
        return empty
    pairs = zip(jax.tree.leaves(cache), jax.tree.leaves(empty), strict=True)
    rooms = {
        got
        for leaf, want in pairs
        for got, least in zip(getattr(leaf, "shape", ())[::-1], want.shape[::-1], strict=False)
        if least == 0 != got
    }
    return form(*rooms) if len(rooms) == 1 else empty


@functools.lru_cache(maxsize=256)
def _form(structure: Any, leaves: tuple[Any, ...], size: int | None, room: int) -> PyTree[jax.ShapeDtypeStruct]:
    """The form of the cache of a model with these leaves. For a deep one it takes long to find, and is asked often."""

    def build(model):
        return model.reserve(model.init_cache() if size is None else rows.init(model, size), room)

    return eqx.filter_eval_shape(build, jax.tree.unflatten(structure, leaves))


def check_cache(model: Any, cache: Any, size: int) -> None:
    """Check that a cache is one of this model, for this number of rows.

    **Raises:** `ValueError` when it is not.
    """
    expected = cache_form(model, size, cache)
    if jax.tree.structure(cache) != jax.tree.structure(expected):
        raise ValueError(
            f"`cache` must have the structure of `model.init_cache()`, {_outline(expected)}, got {_outline(cache)}."
        )
    for (path, want), got in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(cache), strict=True):
        if form_of(got) != form_of(want):
            raise ValueError(
                f"`cache` must have a leading batch axis of {size} on every array, as `Generation.cache` has: "
                f"got {form_of(got)}, expected {form_of(want)} at `{jax.tree_util.keystr(path) or 'cache'}`."
            )


def check_generation(model: Any, generation: Any) -> int:
    """Check that an object is a generation of this model.

    **Returns:** its number of rows.

    **Raises:** `ValueError` when it is not.
    """
    if not isinstance(generation, Generation):
        raise ValueError(f"`generation` must be what `ssmkit.generate` returns, got {type(generation).__name__}.")
    try:
        size = check_fields(model, fields_of(generation))
        check_cache(model, generation.cache, size)
    except ValueError as error:
        raise ValueError(f"`generation` is not of this model: {error}") from None
    return size


def check_fields(model: Any, fields: Mapping[str, Any]) -> int:
    """Check that the arrays of a `Generation` fit the model and each other.

    **Returns:** the number of rows.

    **Raises:** `ValueError` when they do not.
    """
    size = fields["logits"].shape[0]
    sizes = {"batch": size, "vocab": model.vocab_size}
    for name, array in fields.items():
        axes = GENERATION_AXES[name]
        if any(sizes.get(axis, got) != got for axis, got in zip(axes, array.shape, strict=True)):
            raise ValueError(f"`{name}` must have the axes {axes} with {sizes}, got shape {array.shape}.")
    return size


def form_of(leaf: Any) -> str:
    """The dtype and shape of an array, or the type name of any other object."""
    return f"{leaf.dtype}{leaf.shape}" if hasattr(leaf, "dtype") else type(leaf).__name__


def _outline(tree: Any) -> str:
    text = str(jax.tree.structure(tree))
    return text if len(text) <= 200 else f"{text[:197]}..."
