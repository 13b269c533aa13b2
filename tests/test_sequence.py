"""Sequences over several devices: the mesh axis `sequence` changes no result beyond rounding."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BF16_BOUND, VOCAB, Case, build, jit, methods, over, relative_error
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from registry import LANGUAGE_MODELS, MIXERS, OPERATORS

import ssmkit
from ssmkit import _slices
from ssmkit.operators import _attend, _pieces
from ssmkit.parallel import make_mesh


TIME = 19  # over 8 devices: six slices of three tokens, one token, and none
BOUND = 2e-6  # on the relative error: sums of float32 numbers in another order


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


@over(OPERATORS, first=[pytest.mark.newest])
def test_slices_change_nothing(case):
    check(case)


@pytest.mark.once
@over(MIXERS, "mamba2-mixer-groups2-biases", "rwkv6-mixer")
def test_slices_of_mixers(case):
    check(case)


@pytest.mark.slow
@over(MIXERS)
def test_slices_of_all_mixers(case):
    check(case)


@pytest.mark.once
@over(OPERATORS, "toy-recurrence", "conv-kernel4", "stabiliser")
def test_every_length_and_start(case):
    both = Both(case)
    for token in range(TIME):
        found = errors(both(TIME, [token], sequence=8), both(TIME, [token]))
        found |= {f"{name} of some": e for name, e in errors(both(token, [], sequence=8), both(token, [])).items()}
        if token == 0:
            found.pop("gradients of some")  # of a sum of two numbers, either may carry the gradient
        assert max(found.values()) <= BOUND, (token, found)


@over(OPERATORS, "toy-recurrence", "shift")
def test_fewer_tokens_than_devices(case):
    module, inputs = build(case), case.sample(np.random.default_rng(0), 3)
    scan = jit(lambda inputs: module.chunk_scan(inputs, module.init_state()))
    with jax.set_mesh(make_mesh(sequence=8)):
        got = scan(inputs)
    assert max(map(relative_error, jax.tree.leaves(got), jax.tree.leaves(scan(inputs)))) <= BOUND


@pytest.mark.once
@over(OPERATORS, *(case.id for case in OPERATORS if case.id.startswith("attention")))
def test_attention_in_pieces_of_keys(case, monkeypatch):
    monkeypatch.setattr(_pieces, "_SIZE", 2)  # of the three tokens of a slice, and of the room
    monkeypatch.setattr(_attend, "FEW", 0)
    jax.clear_caches()  # what was traced has pieces of another size
    try:
        check(case)
    finally:
        jax.clear_caches()


def test_an_exchange_without_effect_would_be_noticed(monkeypatch):
    monkeypatch.setattr(_slices, "_exchange", lambda index, devices, state, summarise, after: (state, lambda own: own))
    shift, x = ssmkit.Shift((2,)), jnp.ones((16, 2), jnp.float32)
    scan = lambda: shift.chunk_scan(x, shift.init_state())[0]
    with jax.set_mesh(make_mesh(sequence=8)):
        assert relative_error(scan(), np.concatenate([np.zeros((1, 2)), np.ones((15, 2))])) > 0.1


# Whole models.

COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def prefill(model, tokens, starts):
    """The last logits and the caches of rows of packed sequences."""
    run = lambda t, s: model.prefill(t, model.reserve(model.init_cache(), t.size), ssmkit.Extent(t.size - 1, s))
    return jax.vmap(run)(tokens, starts)


def loss(model, tokens, starts):
    caches = lambda t: model.reserve(model.init_cache(), t.size)
    logits = jax.vmap(lambda t, s: model.forward(t, caches(t), ssmkit.Extent(starts=s))[0])(tokens, starts)
    return jnp.mean(jax.vmap(ssmkit.cross_entropy)(logits, tokens))


@pytest.mark.parametrize("kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.once)])
@over(LANGUAGE_MODELS, "hybrid")
def test_rows_over_data_and_tokens_over_sequence(case, kind):
    rng, model = np.random.default_rng(0), build(case)
    arguments = rng.integers(0, VOCAB, (2, 16)).astype(np.int32), rng.random((2, 16)) < 0.1
    mesh = jax.make_mesh((2, 1, 4), ("data", "model", "sequence"), axis_types=(kind,) * 3)
    by_row = NamedSharding(mesh, PartitionSpec("data", "sequence"))
    for run in (prefill, eqx.filter_value_and_grad(loss)):
        expected = eqx.filter_jit(run)(model, *map(jnp.asarray, arguments))
        with jax.set_mesh(mesh):
            got = eqx.filter_jit(run)(ssmkit.shard(model, mesh), *jax.device_put(arguments, by_row))
        errors = map(relative_error, *(map(np.asarray, jax.tree.leaves(tree)) for tree in (got, expected)))
        assert max(errors) <= BOUND


def collectives(run, model, time: int, mesh) -> list[tuple[str, str]]:
    """The operation and the result of every exchange, of one row of tokens."""
    tokens = jax.device_put(np.zeros(time, np.int32), NamedSharding(mesh, PartitionSpec("sequence")))
    with jax.set_mesh(mesh):
        lowered = eqx.filter_jit(run).lower(ssmkit.shard(model, mesh), tokens)  # pyright: ignore
    text = lowered.compile().compiled.as_text()
    return [(operation, result) for result, operation in COLLECTIVE.findall(text)]


@over(LANGUAGE_MODELS, "mamba2")
def test_one_exchange_for_each_operator_whatever_the_length(case):
    model, mesh = build(case), make_mesh(sequence=8)

    def prefill(model, tokens):
        return model.prefill(tokens, model.init_cache())

    def loss(model, tokens):
        return jnp.sum(jnp.sin(model(tokens)))

    short, long = (collectives(prefill, model, time, mesh) for time in (32, 64))
    assert short == long  # in their sizes too
    # Two operators in each of two layers, and the sum of which one term is the last token's features.
    assert [operation for operation, _ in long] == ["all-reduce"] * 5
    # Backwards, each exchanges once more; then all gradients of weights are added.
    backwards = collectives(eqx.filter_grad(loss), model, 32, mesh)
    assert [operation for operation, _ in backwards] == ["all-reduce"] * 9
