"""Files of caches, from which a session continues in another process or on another machine."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array
from safetensors import safe_open

from .._files import replacing
from .._language_model import AbstractLanguageModel
from .._types import checks_itself, shown
from ..checkpoint._tensors import open_safetensors
from ..mixers._mixer import AbstractMixer
from ._cache import GENERATION_AXES, ROWS_AXES, cache_form, check_cache, check_fields, fields_of
from ._state import Generation, Rows


_CACHE = "cache/"
_KEY_KIND = "key_kind"


@checks_itself
def save_cache(cache: Any, path: str | os.PathLike[str]) -> None:
    """Write a cache, or a whole `Generation` with its random state, to one safetensors file.

    The file is complete or absent, even if writing fails. An older file is replaced.

    **Arguments:**

    - `cache`: the cache of one sequence, as `model.init_cache()`, or of a batch, as `Generation.cache`; or a
        `Generation`.
    - `path`: the file.

    **Raises:** `ValueError` when `cache` holds anything but arrays; `OSError` that names the file when it cannot be
    written.
    """
    tensors, metadata = {}, {"format": "ssmkit cache"}
    if isinstance(cache, Generation):
        tensors |= fields_of(cache)
        metadata |= {} if cache.rows.key_kind is None else {_KEY_KIND: cache.rows.key_kind}
        cache = cache.cache
    tensors |= _named(cache)
    for name, leaf in tensors.items():
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise ValueError(f"`cache` must hold arrays, got {type(leaf).__name__} at `{name}`.")
    with replacing(Path(path)) as partial:
        safetensors.numpy.save_file({name: _as_stored(leaf) for name, leaf in tensors.items()}, partial, metadata)


@checks_itself
def load_cache(path: str | os.PathLike[str], model: Any) -> Any:
    """Read a file of `save_cache`, if it fits the model.

    The check compares names, shapes and dtypes of all arrays and, for a `Generation`, the vocabulary. It cannot detect
    that the file belongs to another model of the same geometry. Nothing in the file is executed.

    **Arguments:**

    - `path`: the file.
    - `model`: the language model or mixer that continues from the cache.

    **Returns:** a cache, with a batch axis if the saved cache had one, or a `Generation`.

    **Raises:** `ValueError` when the file is damaged or does not fit this model; `FileNotFoundError` when it does not
    exist.
    """
    if not isinstance(model, AbstractLanguageModel | AbstractMixer):
        raise ValueError(f"`model` must be a language model or a mixer, got {type(model).__name__}.")
    path = Path(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    tensors = {name: np.array(tensor.read()) for name, tensor in open_safetensors(path).items()}
    with safe_open(path, framework="np") as file:
        key_kind = (file.metadata() or {}).get(_KEY_KIND)
    fields = {name: tensors.pop(name) for name in GENERATION_AXES if name in tensors}
    try:
        cache = _cache(model, tensors)
        if not fields:
            return cache
        if not isinstance(model, AbstractLanguageModel):
            raise ValueError("it holds the generation of a language model.")
        return _generation(model, cache, fields, key_kind)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this model: {error}") from None


def _named(cache: Any) -> dict[str, Any]:
    """The leaves of a cache by their names in a file."""
    leaves = jax.tree_util.tree_leaves_with_path(cache)
    return {_CACHE + jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _cache(model: Any, tensors: dict[str, np.ndarray]) -> Any:
    """The cache with these leaves, of which all have a leading batch axis, or none.

    **Raises:** `ValueError` when names, shapes or dtypes are not those of the model.
    """
    form = cache_form(model, None, None)
    expected = _named(form)
    if different := sorted(tensors.keys() ^ expected.keys()):
        raise ValueError(f"only one of the two has {shown(different)}.")
    form = cache_form(model, None, jax.tree.unflatten(jax.tree.structure(form), [tensors[name] for name in expected]))
    expected = _named(form)
    arrays = {name: _as_kept(tensors[name], leaf.dtype) for name, leaf in expected.items()}
    batches = {array.shape[: array.ndim - expected[name].ndim] for name, array in arrays.items()}
    for name, leaf in expected.items():
        got, batch = arrays[name], arrays[name].shape[: arrays[name].ndim - leaf.ndim]
        if got.dtype != leaf.dtype or got.shape != (*batch, *leaf.shape) or len(batch) > 1 or len(batches) > 1:
            raise ValueError(
                f"`{name}` must be {leaf.dtype} of shape {leaf.shape}, with one batch axis before it or none, the same "
                f"for all, got {got.dtype} of shape {got.shape}."
            )
    return jax.tree.unflatten(jax.tree.structure(form), [jnp.asarray(array) for array in arrays.values()])


def _generation(model: Any, cache: Any, fields: dict[str, np.ndarray], key_kind: str | None) -> Generation:
    """The generation with these parts.

    **Raises:** `ValueError` when a part is missing, has another form than in `Generation`, or is out of range.
    """
    kinds = dict(tokens=np.int32, lengths=np.int32, finished=np.bool_, logits=np.inexact, keys=np.uint32)
    kinds |= dict(last=np.int32, consumed=np.int32)
    optional = dict(history=np.bool_, log_probs=np.float32, top_tokens=np.int32, top_log_probs=np.float32)
    if missing := [name for name in kinds if name not in fields]:
        raise ValueError(f"a generation has {missing} too.")
    for name, array in fields.items():
        kind = (kinds | optional)[name]
        if array.ndim != len(axes := GENERATION_AXES[name]) or not jnp.issubdtype(array.dtype, kind):
            raise ValueError(
                f"`{name}` must be {kind.__name__} with the axes {axes}, got {array.dtype} of shape {array.shape}."
            )
    check_cache(model, cache, check_fields(model, fields))
    stops = dict(tokens=model.vocab_size, last=model.vocab_size, lengths=fields["tokens"].shape[1] + 1, consumed=2**31)
    for name, stop in stops.items():
        if fields[name].size and not (fields[name].min() >= 0 and fields[name].max() < stop):
            raise ValueError(f"`{name}` must lie in [0, {stop}).")
    arrays: dict[str, Any] = {name: jnp.asarray(array) for name, array in fields.items()}
    if key_kind is not None:
        try:
            jax.random.wrap_key_data(arrays["keys"], impl=key_kind)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"`keys` are not of the kind {shown(key_kind)}: {shown(str(error))}") from None
    of_rows = {name: arrays.pop(name, None) for name in ROWS_AXES}
    return Generation(**arrays, rows=Rows(cache=cache, **of_rows, key_kind=key_kind))


# The format has no complex numbers: they are stored as pairs.


def _as_stored(leaf: Array | np.ndarray) -> np.ndarray:
    array = np.asarray(leaf, order="C")
    return array[..., None].view(_part(array.dtype)) if np.iscomplexobj(array) else array


def _as_kept(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    pairs = np.issubdtype(dtype, np.complexfloating) and array.dtype == _part(dtype) and array.shape[-1:] == (2,)
    return array.view(dtype)[..., 0] if pairs else array


def _part(dtype: np.dtype) -> np.dtype:
    """The dtype of the real part of a complex number."""
    return np.finfo(dtype).dtype
