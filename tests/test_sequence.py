"""Sequences over several devices: the mesh axis `sequence` changes no result beyond rounding."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BF16_BOUND, Case, build, jit, methods, over, relative_error
from registry import MIXERS, OPERATORS

import ssmkit
from ssmkit.parallel import make_mesh


TIME = 19  # over 8 devices: six slices of three tokens, one token, and none
BOUND = 2e-6  # on the relative error: sums of float32 numbers in another order

RECURRENCES = [case for case in OPERATORS if "attention" not in case.id]


def counted(tree, length):
    """The entries of tokens that count; others may be anything."""
    column = lambda x: jnp.reshape(jnp.arange(TIME, dtype=jnp.int32) < length, (-1,) + (1,) * (x.ndim - 1))
    return jax.tree.map(lambda x: jnp.where(column(x), x, jnp.zeros_like(x)), tree)


def cotangents(tree):
    """Numbers that differ, in the dtype of each array."""

    def one(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return np.zeros(x.shape, jax.dtypes.float0)
        return jnp.reshape(jnp.cos(jnp.arange(x.size, dtype=jnp.float32)), x.shape).astype(x.dtype)

    return jax.tree.map(one, tree)


class Both:
    """An operator or a mixer with its outputs, state and gradients, for any extent, on one device and on several."""

    def __init__(self, case: Case):
        self.module, rng = build(case), np.random.default_rng(0)
        self.inputs, begun = case.sample(rng, TIME), case.sample(rng, 5)
        init, many, _ = methods(self.module)
        _, self.state = jit(lambda *arguments: many(*arguments))(begun, self.module.reserve(init(), 32))
        arrays, static = eqx.partition(self.module, eqx.is_inexact_array)

        def run(arrays, inputs, state, length, starts):
            extent = ssmkit.Extent(length, starts)
            scan = lambda arrays, inputs, state: methods(eqx.combine(arrays, static))[1](inputs, state, extent)
            (outputs, after), pull = jax.vjp(scan, arrays, inputs, state)
            gradients = pull((counted(cotangents(outputs), length), cotangents(after)))
            gradients = [leaf for leaf in jax.tree.leaves(gradients) if leaf.dtype != jax.dtypes.float0]
            return {"outputs": counted(outputs, length), "state": after, "gradients": gradients}

        self.run = functools.partial(jit(run), arrays)

    def __call__(self, length: int, starts: list[int], **axes: int):
        arguments = self.inputs, self.state, np.int32(length), np.isin(np.arange(TIME), starts)
        if not axes:
            return jax.tree.map(np.asarray, self.run(*arguments))
        with jax.set_mesh(make_mesh(**axes)):
            return jax.tree.map(np.asarray, self.run(*arguments))


def errors(got, expected) -> dict[str, float]:
    worst = lambda a, b: max(map(relative_error, jax.tree.leaves(a), jax.tree.leaves(b)), default=0.0)
    return {name: worst(got[name], expected[name]) for name in expected}


def check(case):
    both = Both(case)
    for length, starts in ((TIME, []), (TIME, [0, 4, 5, 14]), (7, [6]), (3, [2])):
        found = errors(both(length, starts, sequence=8), both(length, starts))
        assert max(found.values()) <= case_bound(case), (length, starts, found)


def case_bound(case: Case) -> float:
    """That of the laws: parameters in bfloat16 have gradients in bfloat16."""
    return BF16_BOUND if "dtype" in case.id or "bf16" in case.id else max(case.bound, BOUND)


@over(RECURRENCES)
def test_slices_change_nothing(case):
    check(case)


@over(MIXERS, "mamba2-mixer-groups2-biases", "rwkv6-mixer")
def test_slices_of_mixers(case):
    check(case)


@pytest.mark.slow
@over(MIXERS)
def test_slices_of_all_mixers(case):
    check(case)


@over(OPERATORS, "toy-recurrence", "conv-kernel4", "stabiliser")
def test_every_length_and_start(case):
    both = Both(case)
    for token in range(TIME):
        found = errors(both(TIME, [token], sequence=8), both(TIME, [token]))
        found |= {f"{name} of some": e for name, e in errors(both(token, [], sequence=8), both(token, [])).items()}
        if token == 0:
            found.pop("gradients of some")  # of a sum of two numbers, either may carry the gradient
        assert max(found.values()) <= BOUND, (token, found)
