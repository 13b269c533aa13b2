"""A check that mixers fit the residual stream. It uses shapes only, when a model is built."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ._mixer import AbstractMixer


def check_mixers(mixers: Sequence[AbstractMixer[Any]], width: int) -> None:
    """Check that each mixer maps features of `width` to features of `width` and keeps the form of its cache.

    Nothing is computed: `prefill` and `step` are traced with one token, once for all mixers of equal structure.

    **Raises:** `ValueError` naming the mixer, the actual and the expected value.
    """
    known = set()
    for i, mixer in enumerate(mixers):
        arrays, rest = eqx.partition(mixer, eqx.is_array)
        kind = (jax.tree.structure(mixer), *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arrays)))
        kind = (kind, *map(id, jax.tree.leaves(rest)))  # functions, if they are not static
        if kind not in known:
            known.add(kind)
            _check(f"`mixers[{i}]` ({type(mixer).__name__})", mixer, width)


def _check(name: str, mixer: AbstractMixer[Any], width: int) -> None:
    for method, shape in (("prefill", (1, width)), ("step", (width,))):
        try:
            before, returned = _shapes(mixer, method, shape)
        except Exception as error:  # whatever a mixer may raise
            if (other := _own_width(mixer)) not in (None, width):
                raise ValueError(
                    f"{name} is made for features of width {other}, expected `width` = {width}: make mixers and model "
                    "with the same width."
                ) from error
            cause = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{name}.{method} fails with one token of `width` = {width} features, shape {shape}: "
                f"{type(error).__name__}: {cause}"
            ) from error
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(f"{name}.{method} must return features and the new cache, got {type(returned).__name__}.")
        y, after = returned
        if getattr(y, "shape", None) != shape or not jnp.issubdtype(y.dtype, jnp.floating):
            raise ValueError(
                f"{name}.{method} must return floating-point features of shape {shape}, as `width` = {width} says, got "
                f"{_form(y)}."
            )
        structures = jax.tree.structure(before), jax.tree.structure(after)
        if structures[0] != structures[1]:
            raise ValueError(
                f"{name}.{method} must return a cache of the structure that `init_cache` has, {structures[0]}, got "
                f"{structures[1]}."
            )
        for (path, a), b in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
            if _form(a) != _form(b):
                raise ValueError(
                    f"{name}.{method} must keep shapes and dtypes of its cache: `cache{jax.tree_util.keystr(path)}` is "
                    f"{_form(a)} in `init_cache`, got {_form(b)}."
                )


def _form(leaf: Any) -> str:
    return f"{leaf.dtype} of shape {leaf.shape}" if hasattr(leaf, "dtype") else type(leaf).__name__


def _shapes(mixer: AbstractMixer[Any], method: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The shapes and dtypes of the empty cache, and of the method's results for features of a shape."""

    def run(mixer: AbstractMixer[Any], x: jax.Array) -> tuple[Any, Any]:
        cache = mixer.reserve(mixer.init_cache(), 1)
        return cache, getattr(mixer, method)(x, cache)

    return eqx.filter_eval_shape(run, mixer, jax.ShapeDtypeStruct(shape, jnp.float32))


def _own_width(mixer: AbstractMixer[Any]) -> int | None:
    """The width that the mixer maps to itself, searched among the sizes of its parameters."""
    for width in sorted({size for leaf in jax.tree.leaves(mixer) for size in getattr(leaf, "shape", ())}):
        try:
            _, (y, _) = _shapes(mixer, "prefill", (1, width))
        except Exception:  # another size
            continue
        if y.shape == (1, width):
            return width
    return None
