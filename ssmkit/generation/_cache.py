"""Which caches fit a model."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from ._engine import Generation, empty_cache


# Of the arrays of a `Generation`, but for its cache.
GENERATION_AXES = {
    "tokens": ("batch", "new"),
    "lengths": ("batch",),
    "finished": ("batch",),
    "logits": ("batch", "vocab"),
    "keys": ("batch", "words"),
    "history": ("batch", "vocab"),
}


def cache_form(model: Any, size: int | None) -> PyTree[jax.ShapeDtypeStruct]:
    """Structure, shapes and dtypes of the model's cache for `size` rows, or of one sequence, without a batch axis."""
    return eqx.filter_eval_shape(model.init_cache if size is None else lambda: empty_cache(model, size))


def check_cache(model: Any, cache: Any, size: int) -> None:
    """Refuse a cache that is none of this model for so many rows.

    **Raises:** `ValueError`.
    """
    expected = cache_form(model, size)
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
    """Refuse what is no generation of this model.

    **Returns:** its number of rows.

    **Raises:** `ValueError`.
    """
    if not isinstance(generation, Generation):
        raise ValueError(f"`generation` must be what `ssmkit.generate` returns, got {type(generation).__name__}.")
    fields = {name: getattr(generation, name) for name in GENERATION_AXES if getattr(generation, name) is not None}
    try:
        rows = check_fields(model, fields)
        check_cache(model, generation.cache, rows)
    except ValueError as error:
        raise ValueError(f"`generation` is not of this model: {error}") from None
    return rows


def check_fields(model: Any, fields: Mapping[str, Any]) -> int:
    """Refuse arrays of a `Generation` that do not fit the model, or each other.

    **Returns:** the number of rows.

    **Raises:** `ValueError`.
    """
    rows = fields["logits"].shape[0]
    sizes = {"batch": rows, "vocab": model.vocab_size}
    for name, array in fields.items():
        axes = GENERATION_AXES[name]
        if any(sizes.get(axis, size) != size for axis, size in zip(axes, array.shape, strict=True)):
            raise ValueError(f"`{name}` must have the axes {axes} with {sizes}, got shape {array.shape}.")
    return rows


def form_of(leaf: Any) -> str:
    """Dtype and shape of an array, or the name of what is none."""
    return f"{leaf.dtype}{leaf.shape}" if hasattr(leaf, "dtype") else type(leaf).__name__


def _outline(tree: Any) -> str:
    text = str(jax.tree.structure(tree))
    return text if len(text) <= 200 else f"{text[:197]}..."
