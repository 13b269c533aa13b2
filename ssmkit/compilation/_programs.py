"""The programs that can be compiled: functions of a model without weights, and their arguments."""

from collections.abc import Callable
from inspect import unwrap
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from .._extent import Extent
from .._language_model import AbstractLanguageModel
from ..generation import rows
from ..generation._engine import Inputs, begin
from ..generation._prompts import Prompts
from ..generation._requests import Request
from ..generation._sampling import Greedy
from ..layers._array_kinds import ArrayKind, array_kinds


_STOPS = 8


class Program(NamedTuple):
    """A function, its arguments without values, and what of them has a batch axis or is consumed."""

    run: Callable[..., Any]
    shared: Any
    """The argument that all rows share."""
    mapped: Any
    """The argument with a leading `batch` axis on every array."""
    consumed: Any
    """The argument whose memory the results take: `run(shared, mapped, consumed)`."""
    kept: Callable[[Any], Any]
    """The function from a result to the part of it that takes the memory of `consumed`, and has its form."""
    consumed_by_row: bool
    """Whether `consumed` has a leading `batch` axis."""
    time: int | None = None
    """The size of the axis of tokens, the second one, in `mapped`; `None` without such an axis."""


class Sizes(NamedTuple):
    """The sizes of a program's inputs, and the mesh that they lie on."""

    batch: int
    length: int
    max_new_tokens: int
    mesh: Mesh | None = None
    fully_sharded: bool = False
    """Whether matrices are spread over the mesh's axis `data` too."""


def _array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def is_form(leaf: Any) -> bool:
    """Whether a leaf stands for an array without values."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def arrays_by_kind(model: AbstractLanguageModel) -> list[tuple[ArrayKind, jax.ShapeDtypeStruct]]:
    """The arrays of a model without values, each with its kind."""
    pairs = zip(jax.tree.leaves(array_kinds(model)), jax.tree.leaves(model), strict=True)
    return [(kind, leaf) for kind, leaf in pairs if is_form(leaf)]


def nbytes(array: jax.ShapeDtypeStruct) -> int:
    """The bytes of an array without values."""
    return array.size * array.dtype.itemsize


def form_of(tree: Any) -> Any:
    """The tree with a `jax.ShapeDtypeStruct` in place of every array."""
    return jax.tree.map(lambda leaf: _array(leaf.dtype, *leaf.shape) if eqx.is_array(leaf) else leaf, tree)


def cache_of(model: AbstractLanguageModel, batch: int, room: int, *, inside: bool = False) -> Any:
    """The cache of many rows, without values.

    **Arguments:**

    - `model`: the model, with or without values.
    - `batch`: the number of rows.
    - `room`: the number of tokens for which attention has room.
    - `inside`: whether it has the form that the cache has in the engine's loops.
    """

    def make(model):
        cache = rows.fork(model.reserve(model.init_cache(), room), batch)
        return rows.inside(cache, batch) if inside else cache

    return eqx.filter_eval_shape(make, model)


def _second(result: tuple[Any, Any]) -> Any:
    return result[1]


def step(model: AbstractLanguageModel, sizes: Sizes) -> Program:
    """One token of every row, after a prompt of `length` tokens."""

    def run(model, tokens, cache):
        advance = rows.run(lambda token, cache, _: model.step(token, cache), sizes.batch)
        return advance(tokens, cache, jnp.ones(sizes.batch, bool))

    cache = cache_of(model, sizes.batch, sizes.length + 1, inside=True)
    return Program(run, model, _array(jnp.int32, sizes.batch), cache, _second, sizes.batch > 1)


def prefill(model: AbstractLanguageModel, sizes: Sizes) -> Program:
    """Prompts of at most `length` tokens, each row of its own length."""

    def run(model, prompts, cache):
        tokens, lengths = prompts
        advance = rows.run(
            lambda tokens, cache, length: model.prefill(tokens, cache, Extent(length=length)), sizes.batch
        )
        return advance(tokens, cache, lengths)

    prompts = _array(jnp.int32, sizes.batch, sizes.length), _array(jnp.int32, sizes.batch)
    cache = cache_of(model, sizes.batch, sizes.length, inside=True)
    return Program(run, model, prompts, cache, _second, sizes.batch > 1, sizes.length)


def generate(model: AbstractLanguageModel, sizes: Sizes) -> Program:
    """Prompts of at most `length` tokens, then at most `max_new_tokens` greedy tokens: the whole engine."""

    def run(model, arrays, cache):
        request, prompts = arrays
        return unwrap(begin)(Inputs(model, request, prompts), sizes.max_new_tokens, cache)

    def arrays() -> tuple[Request, Prompts]:
        each = jnp.zeros(batch, jnp.int32)
        request = Request(each, jnp.zeros((batch, _STOPS), jnp.int32), Greedy())
        return request, Prompts(jnp.zeros((batch, sizes.length), jnp.int32), each)

    batch = sizes.batch
    cache = cache_of(model, batch, sizes.length + sizes.max_new_tokens)
    kept = lambda result: result[0].rows.cache
    return Program(run, model, eqx.filter_eval_shape(arrays), cache, kept, True, sizes.length)


def train(model: AbstractLanguageModel, sizes: Sizes) -> Program:
    """One step of the trainer on sequences of `length` tokens: loss, gradient and AdamW, in float32.

    **Raises:** `ModuleNotFoundError` naming the extra of the trainer; `ValueError` for a model with 8-bit matrices.
    """
    from ..training import TrainConfig
    from ..training._layout import start
    from ..training._optimizer import make_optimizer
    from ..training._precision import check_trainable
    from ..training._update import update_of

    check_trainable(model)
    config = TrainConfig(batch_size=sizes.batch, context=sizes.length, fully_sharded=sizes.fully_sharded)
    optimizer = make_optimizer(config)
    is_weight = lambda leaf: is_form(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    params, static = eqx.partition(model, is_weight)
    state = eqx.filter_eval_shape(lambda params: start(params, optimizer), params)
    update = update_of(config, optimizer, static, sizes.mesh)
    batch = _array(jnp.int32, sizes.batch, sizes.length + 1)
    run = lambda _, batch, state: update(batch, state)
    return Program(run, None, batch, state, _second, False, sizes.length + 1)


PROGRAMS: dict[str, Callable[[AbstractLanguageModel, Sizes], Program]] = {
    "step": step,
    "prefill": prefill,
    "generate": generate,
    "train": train,
}
"""The programs by their public names."""
