"""Any operator or mixer against an oracle in float64: values, final state and gradients, chunked and stepped."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from helpers import jit, methods, relative_error, with_chunk_size


CHUNK_SIZES = (1, 16, 64)
TIME = 83  # no multiple of a chunk but the first: with 64 there is a full chunk and a ragged one
BOUND = 2e-5


def log_decays(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Logarithms of decays between 1 - 1e-6 and 1e-30, log-uniform, in float64."""
    return -np.exp(rng.uniform(np.log(1e-6), np.log(-np.log(1e-30)), shape))


def errors(module: Any, oracle: Callable, inputs: Any, state: Any) -> Mapping[str, float]:
    """The worst relative errors of `module` in float32 against `oracle(module, inputs, state)` in float64.

    `oracle` gets the same module, inputs and state in float64 (the module for its parameters only), and returns outputs
    and final state in the same structures. Gradients are with respect to every parameter, input and state, from random
    cotangents of outputs and final state.
    """
    arguments = eqx.filter(module, eqx.is_inexact_array), inputs, state
    static = eqx.filter(module, eqx.is_inexact_array, inverse=True)
    expected = _with_gradients(lambda m, x, s: oracle(eqx.combine(m, static), x, s), *_in_float64(arguments))
    found = {}
    for chunk in CHUNK_SIZES:
        many = lambda m, x, s: methods(with_chunk_size(eqx.combine(m, static), chunk))[1](x, s)  # noqa: B023
        found |= _compare(f"chunk {chunk}", _with_gradients(many, *arguments), expected)

    def steps(m, x, s):
        s, y = jax.lax.scan(lambda s, x: methods(eqx.combine(m, static))[2](x, s)[::-1], s, x)
        return y, s

    return found | _compare("step", _with_gradients(steps, *arguments), expected)


def forward_errors(module: Any, oracle: Callable, inputs: Any, state: Any) -> Mapping[str, float]:
    """As `errors`, but of outputs and final state alone, in chunks of 16 tokens: for one option among many."""
    arguments = eqx.filter(module, eqx.is_inexact_array), inputs, state
    static = eqx.filter(module, eqx.is_inexact_array, inverse=True)
    many = lambda m, x, s: methods(with_chunk_size(eqx.combine(m, static), 16))[1](x, s)
    names = ("outputs", "final state")
    got = dict(zip(names, jit(many)(*arguments), strict=True))
    expected = jit(lambda m, x, s: oracle(eqx.combine(m, static), x, s))(*_in_float64(arguments))
    return _compare("chunk 16", got, dict(zip(names, expected, strict=True)))


def _with_gradients(function: Callable, *arguments: Any) -> dict[str, Any]:
    @jit
    def run(*arguments):
        results, pull = jax.vjp(function, *arguments)
        rng = np.random.default_rng(0)

        def cotangent(leaf):
            draw = rng.normal(size=leaf.shape) + 1j * rng.normal(size=leaf.shape)
            return jnp.asarray(draw if jnp.iscomplexobj(leaf) else draw.real).astype(leaf.dtype)

        return results, pull(jax.tree.map(cotangent, results))

    (outputs, final), (d_module, d_inputs, d_state) = run(*arguments)
    names = ("outputs", "final state", "d parameters", "d inputs", "d state")
    return dict(zip(names, (outputs, final, d_module, d_inputs, d_state), strict=True))


def _compare(name: str, got: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    found = {}
    for what, tree in expected.items():
        assert jax.tree.structure(got[what]) == jax.tree.structure(tree), (name, what)
        for (path, b), a in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(got[what]), strict=True):
            found[f"{name}: {what} {jax.tree_util.keystr(path)}"] = relative_error(a, b)
    return found


def _in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.complex128 if jnp.iscomplexobj(a) else jnp.float64), tree)
