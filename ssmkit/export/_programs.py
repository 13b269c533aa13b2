"""The programs of an artefact: a model's methods, exported as functions of named arrays."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import kernels
from .._extent import Extent
from .._language_model import AbstractLanguageModel
from ..checkpoint import CheckpointError
from ..generation import rows
from ._manifest import Spec


_PATHS = "jax_traceback_in_locations_limit"

BATCH = "_batch"
"""The suffix of the name of a program that takes any number of sequences."""


class Parts(NamedTuple):
    """A model split into named arrays and the constants of its programs."""

    weights: Mapping[str, jax.Array]
    cache: Mapping[str, Spec]
    vocab_size: int
    logits: str
    join: Callable[[Mapping[str, Any]], AbstractLanguageModel]
    """The model with these weights."""
    begin: Callable[[AbstractLanguageModel], Any]
    """The model's own cache before the first token."""
    enter: Callable[[Mapping[str, Any]], Any]
    """The model's own cache, from named arrays."""


def take_apart(model: AbstractLanguageModel, room: int) -> Parts:
    """Split a model: name its arrays, and those of its cache, by their paths.

    **Arguments:**

    - `model`: any language model.
    - `room`: for how many tokens its cache has room.

    **Raises:** `CheckpointError` for arrays that an artefact cannot hold.
    """
    arrays, constant = eqx.partition(model, lambda leaf: isinstance(leaf, jax.Array | np.ndarray))
    weights, weights_structure = _named(arrays)
    wrong = [f"`{name}`: {leaf.dtype}" for name, leaf in weights.items() if not _storable(leaf)]
    if wrong:
        raise CheckpointError("The model has arrays that no weight file can hold.", wrong)
    begin = lambda model: model.reserve(model.init_cache(), room)
    cache, cache_structure = _named(eqx.filter_eval_shape(begin, model))

    def unnamed(structure: Any, names: Sequence[str], values: Mapping[str, Any]) -> Any:
        return jax.tree.unflatten(structure, [values[name] for name in names])

    # The order is that of the tree, because a traced function returns dictionaries sorted by name.
    weight_names, cache_names = tuple(weights), tuple(cache)
    step = eqx.filter_eval_shape(lambda: model.step(jnp.zeros((), jnp.int32), model.reserve(model.init_cache(), 1)))
    return Parts(
        weights={name: jnp.asarray(leaf) for name, leaf in weights.items()},
        cache={name: Spec.of(leaf) for name, leaf in cache.items()},
        vocab_size=model.vocab_size,
        logits=step[0].dtype.name,
        join=lambda values: eqx.combine(unnamed(weights_structure, weight_names, values), constant),
        begin=begin,
        enter=lambda values: unnamed(cache_structure, cache_names, values),
    )


def _named(tree: Any) -> tuple[dict[str, Any], Any]:
    """The leaves of a tree by their paths, and its structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator=".") or "all": leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise CheckpointError("Two arrays of the model have the same path.")
    return named, structure


def _storable(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.extended) and not jnp.iscomplexobj(leaf)


def functions(parts: Parts, lengths: Sequence[int]) -> dict[str, Callable[..., Any]]:
    """The functions to export, by name: pure functions of dictionaries of arrays, for one sequence.

    `init(weights) -> cache`, `step(weights, token, cache, valid) -> (logits, cache)`, and for every length `n`
    `prefill_<n>(weights, tokens, cache, length) -> (logits, cache)` and
    `forward_<n>(weights, tokens, cache) -> (logits, cache)`; see `AbstractLanguageModel`.

    **Arguments:**

    - `parts`: the model.
    - `lengths`: the numbers of tokens that programs take at a time.
    """

    def init(weights):
        return _named(parts.begin(parts.join(weights)))[0]

    def step(weights, token, cache, valid):
        logits, after = parts.join(weights).step(token, parts.enter(cache), valid=valid)
        return logits, _named(after)[0]

    def prefill(weights, tokens, cache, length):
        logits, after = parts.join(weights).prefill(tokens, parts.enter(cache), Extent(length=length))
        return logits, _named(after)[0]

    def forward(weights, tokens, cache):
        logits, after = parts.join(weights).forward(tokens, parts.enter(cache))
        return logits, _named(after)[0]

    sized = {f"{f.__name__}_{length}": f for length in lengths for f in (prefill, forward)}
    return {"init": init, "step": step, **sized}


def signature(name: str, weights: Mapping[str, Spec], cache: Mapping[str, Spec], batch: Any = None) -> tuple[Any, ...]:
    """The arguments of a program, as `jax.ShapeDtypeStruct`s.

    **Arguments:**

    - `name`: the name of the program, without `_batch`.
    - `weights`, `cache`: the weights and the cache of the model.
    - `batch`: the size of a leading axis on everything except the weights; `None` for no such axis.
    """
    axes = () if batch is None else (batch,)
    array = lambda dtype, *shape: jax.ShapeDtypeStruct((*axes, *shape), dtype)
    fixed = {key: jax.ShapeDtypeStruct(spec.shape, spec.numpy_dtype) for key, spec in weights.items()}
    if name == "init":
        return (fixed,)
    method, _, length = name.partition("_")
    tokens = array(np.int32, int(length)) if length else array(np.int32)
    state = {key: array(spec.numpy_dtype, *spec.shape) for key, spec in cache.items()}
    last = {"step": [array(np.bool_)], "prefill": [array(np.int32)], "forward": []}[method]
    return (fixed, tokens, state, *last)


def results(name: str, vocab_size: int, logits: str, cache: Mapping[str, Spec], batch: Any = None) -> Any:
    """The results of a program, in the form of `signature`."""
    axes = () if batch is None else (batch,)
    state = {key: jax.ShapeDtypeStruct((*axes, *spec.shape), spec.numpy_dtype) for key, spec in cache.items()}
    if name == "init":
        return state
    method, _, length = name.partition("_")
    time = (int(length),) if method == "forward" else ()
    return jax.ShapeDtypeStruct((*axes, *time, vocab_size), Spec(logits, ()).numpy_dtype), state


def export_programs(parts: Parts, lengths: Sequence[int], platform: str) -> Iterator[tuple[str, Any]]:
    """Export every program of a model for one platform, each for one sequence and for any number of sequences.

    **Arguments:**

    - `parts`: the model.
    - `lengths`: as for `functions`.
    - `platform`: `cpu`, `cuda`, `rocm` or `tpu`; this machine need not have it.

    **Returns:** pairs of a name and a `jax.export.Exported`.
    """
    from jax import export

    weights = {name: Spec.of(leaf) for name, leaf in parts.weights.items()}
    (batch,) = export.symbolic_shape("batch")
    for name, function in functions(parts, lengths).items():
        with _tracing_for(platform):
            yield name, export.export(jax.jit(function), platforms=[platform])(*signature(name, weights, parts.cache))
        if name != "init":
            mapped = rows.each(function, shared=1)
            with _tracing_for(platform):
                exported = export.export(jax.jit(mapped), platforms=[platform])
                yield name + BATCH, exported(*signature(name, weights, parts.cache, batch))


@contextlib.contextmanager
def _tracing_for(platform: str) -> Iterator[None]:
    """A context in which kernels choose chunks for the platform, and no source path enters the program."""
    limit = getattr(jax.config, _PATHS)
    jax.config.update(_PATHS, 0)
    try:
        with kernels.target(platform):
            yield
    finally:
        jax.config.update(_PATHS, limit)
