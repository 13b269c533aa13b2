"""A module under test, compiled into the few programs that all laws use."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._extent import Extent
from .._language_model import AbstractLanguageModel
from ..mixers._mixer import AbstractMixer
from ..operators._operator import AbstractSequenceOperator
from ..operators._recurrence import DiagonalChunkedRecurrence


# The laws are about results, not speed: compiling without LLVM's optimisations takes half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def methods(module: Any) -> tuple[Callable, Callable, Callable]:
    """The methods `(init, many, step)` of any kind of module. Kinds differ in the names of these methods only."""
    if isinstance(module, AbstractSequenceOperator):
        return module.init_state, module.chunk_scan, module.step
    assert isinstance(module, AbstractMixer | AbstractLanguageModel)
    return module.init_cache, module.prefill, module.step


class Subject:
    """A module with its programs, each compiled once for all sequences, splits and lengths.

    Arguments and results are NumPy arrays, because JAX would compile every new shape of a slice.

    **Arguments:** the module, and the inputs of some tokens.
    """

    def __init__(self, module: Any, inputs: Any):
        self.module = module
        self.inputs = to_numpy(inputs)
        self.time = jax.tree.leaves(self.inputs)[0].shape[0]
        self.init = to_numpy(self.begin())
        self.last_only = isinstance(module, AbstractLanguageModel)
        dynamic, static = eqx.partition(module, eqx.is_array)

        def many(dynamic, inputs, cache, length):
            return methods(eqx.combine(dynamic, static))[1](inputs, cache, Extent(length=length))

        def packed(dynamic, inputs, cache, length, starts):
            return methods(eqx.combine(dynamic, static))[1](inputs, cache, Extent(length, starts))

        def steps(dynamic, inputs, cache, valid):
            _, _, step = methods(eqx.combine(dynamic, static))

            def body(cache, token):
                outputs, cache = step(token[0], cache, valid=token[1])
                return cache, outputs

            cache, outputs = jax.lax.scan(body, cache, (inputs, valid))
            return outputs, cache

        self.programs = {"many": (dynamic, many), "steps": (dynamic, steps)}
        self._many, self._steps, self._packed = (functools.partial(jit(f), dynamic) for f in (many, steps, packed))

    def begin(self) -> Any:
        """The cache before the first token, with room for a past and for all tokens."""
        return self.module.reserve(methods(self.module)[0](), 2 * self.time)

    def many(self, inputs: Any, cache: Any, length: int) -> tuple[Any, Any]:
        """The outputs and cache of all tokens at once, of which `length` are valid."""
        return to_numpy(self._many(inputs, cache, np.int32(length)))

    def packed(self, inputs: Any, cache: Any, length: int, starts: np.ndarray) -> tuple[Any, Any]:
        """The outputs and cache of several packed sequences. The first of them continues from the cache."""
        return to_numpy(self._packed(inputs, cache, np.int32(length), starts))

    def steps(self, inputs: Any, cache: Any, valid: np.ndarray) -> tuple[Any, Any]:
        """The outputs of every step, and the cache after one step per token, of which some are valid."""
        return to_numpy(self._steps(inputs, cache, valid))

    def warm(self, tokens: int, inputs: Any = None) -> Any:
        """A cache with a past of the given number of tokens."""
        return self.many(rolled(self.inputs, 1) if inputs is None else inputs, self.init, tokens)[1]

    def valid_outputs(self, outputs: Any, length: int) -> Any:
        """The specified outputs of `many`: those of every valid token or, for a language model, of the last one."""
        if self.last_only:
            return outputs[None][: min(length, 1)]
        return jax.tree.map(lambda array: array[:length], outputs)

    def matching_steps(self, outputs: Any, length: int) -> Any:
        """The outputs of the steps that correspond to `valid_outputs`."""
        first = max(length - 1, 0) if self.last_only else 0
        return jax.tree.map(lambda array: array[first:length], outputs)

    @functools.cached_property
    def gradients(self) -> dict[str, Callable]:
        """For both programs, a function of `(inputs, cache, length)` that returns all gradients."""
        return {name: functools.partial(self._gradients, name, jit(self._pulled(name))) for name in self.programs}

    def _pulled(self, name: str) -> Callable:
        dynamic, program = self.programs[name]
        integers = eqx.filter(dynamic, eqx.is_inexact_array, inverse=True)

        def loss(arguments, length):
            parameters, cache, inputs = arguments
            valid = length if name == "many" else jnp.arange(self.time, dtype=jnp.int32) < length
            outputs, cache = program(eqx.combine(parameters, integers), inputs, cache, valid)
            if not self.last_only:
                outputs = jax.tree.map(functools.partial(_zero_from, length=length), outputs)
            elif name == "steps":
                outputs = jax.lax.dynamic_index_in_dim(outputs, length - 1, keepdims=False)
            return sum(_weighed(leaf) for leaf in jax.tree.leaves((outputs, cache)))

        return jax.grad(loss, allow_int=True)

    def _gradients(self, name: str, gradient: Callable, inputs: Any, cache: Any, length: int) -> Any:
        parameters = eqx.filter(self.programs[name][0], eqx.is_inexact_array)
        found = gradient((parameters, cache, inputs), np.int32(length))
        # Integer inputs have no gradient: JAX gives them zeros of dtype float0, which mean nothing.
        keep = lambda leaf: None if leaf.dtype == jax.dtypes.float0 else np.asarray(leaf)
        return dict(zip(("parameters", "cache", "inputs"), jax.tree.map(keep, found), strict=True))


def with_chunk_size(module: Any, chunk_size: int) -> Any:
    """The same module with another bound on the chunk size in every recurrence it holds."""

    def change(node):
        if isinstance(node, DiagonalChunkedRecurrence):
            node = copy.copy(node)
            object.__setattr__(node, "chunk_size", chunk_size)
        return node

    return jax.tree.map(change, module, is_leaf=lambda node: isinstance(node, DiagonalChunkedRecurrence))


def to_numpy(tree: Any) -> Any:
    """The tree with NumPy arrays."""
    return jax.tree.map(np.asarray, tree)


def rolled(inputs: Any, tokens: int) -> Any:
    """The sequence with its first tokens moved to the end."""
    return jax.tree.map(lambda array: np.concatenate([array[tokens:], array[:tokens]]), inputs)


def mixed(first: Any, second: Any, use_first: np.ndarray) -> Any:
    """The tokens of the first sequence where `use_first` is true, and those of the second elsewhere."""

    def select(a, b):
        return np.where(np.reshape(use_first, (-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, first, second)


def _zero_from(array: jax.Array, *, length: jax.Array) -> jax.Array:
    valid = jnp.arange(array.shape[0], dtype=jnp.int32) < length
    return jnp.where(jnp.reshape(valid, (-1,) + (1,) * (array.ndim - 1)), array, jnp.zeros_like(array))


def _weighed(leaf: jax.Array) -> jax.Array:
    """A sum in which every entry has its own weight. Integers, which have no gradient, do not count."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros((), jnp.float32)
    weights = jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)
    if jnp.iscomplexobj(leaf):
        return jnp.sum(weights * leaf.real.astype(jnp.float32)) + jnp.sum(weights * leaf.imag.astype(jnp.float32))
    return jnp.sum(weights * leaf.astype(jnp.float32))
