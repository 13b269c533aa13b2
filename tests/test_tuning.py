"""Chunk size and schedule: chosen by a table or by hand, used as chosen, and of no consequence for results."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from helpers import build, equations, over, random_coefficients, relative_error, trees_close
from registry import LANGUAGE_MODELS

import ssmkit
from ssmkit import kernels


TIME, HEADS, KEY, VALUE = 160, 4, 5, 3
FORMS = {"K1": {}, "K2": dict(decays=KEY), "K3": dict(decays=KEY, value=1)}
FAMILIES = {"K1": kernels.SCALAR_DECAY, "K2": kernels.DECAY_PER_KEY, "K3": kernels.ELEMENTWISE}
SCHEDULES = {"serial": kernels.serial, "parallel": kernels.parallel}
MODEL = over(LANGUAGE_MODELS, "mamba2-groups2-biases-limits-D_has_hdim-tied")  # with a chunk size of 4


@functools.cache
def arguments(form: str):
    sizes = dict(time=TIME, heads=HEADS, groups=2, key=KEY, value=VALUE, cumulative=-5.0, chunk=TIME)
    return random_coefficients(0, **sizes | FORMS[form])


def used(function, *arguments) -> tuple[int, str]:
    """How many chunks a program goes through, and by which schedule.

    Either has a loop over the chunks; only one without any exponential leaves the work on the chunks outside.
    """
    traced = equations(jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments).jaxpr)
    loop = next(equation for equation, _ in traced if equation.primitive.name == "scan")
    inside = {equation.primitive.name for equation, _ in equations(loop.params["jaxpr"].jaxpr)}
    return loop.params["length"], "serial" if "exp" in inside else "parallel"


def chunks(size: int) -> int:
    return -(-TIME // size)


# What is used.


@pytest.mark.parametrize("form", FORMS)
def test_the_table_is_used(form):
    """The tuning is that of the platform that runs the program, or of the one it is made for."""
    coefficients, state = arguments(form)
    family = FAMILIES[form]
    sizes = {}
    for platform, schedule in (("cpu", "serial"), ("cuda", "parallel"), ("rocm", "parallel"), ("tpu", "parallel")):
        with kernels.target(platform):
            chosen = kernels.tuning()
            assert chosen == kernels.Tuning(platform)
            assert chosen.order() is SCHEDULES[schedule]
            sizes[platform] = chosen.chunk_size_for(
                family, members=coefficients.value.shape[-2] // coefficients.write.shape[-2]
            )
            assert used(kernels.chunk_scan, coefficients, state) == (chunks(sizes[platform]), schedule)
    assert chunks(sizes["cpu"]) != chunks(sizes["cuda"])  # or nothing was shown
    with kernels.target(jax.default_backend()):
        expected = used(kernels.chunk_scan, coefficients, state)
    assert used(kernels.chunk_scan, coefficients, state) == expected


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_said_is_used(form, schedule):
    coefficients, state = arguments(form)
    with kernels.tuned(chunk_size=20, schedule=SCHEDULES[schedule]):
        assert used(kernels.chunk_scan, coefficients, state) == (8, schedule)


def test_one_of_both_may_be_said():
    coefficients, state = arguments("K1")
    usual = used(kernels.chunk_scan, coefficients, state)
    with kernels.tuned(chunk_size=20):
        assert used(kernels.chunk_scan, coefficients, state) == (8, usual[1])
    with kernels.tuned(schedule=kernels.parallel):
        assert used(kernels.chunk_scan, coefficients, state) == (usual[0], "parallel")
    with kernels.tuned():
        assert used(kernels.chunk_scan, coefficients, state) == usual


def test_a_recurrence_bounds_the_chunk_size():
    """Its own `chunk_size` is a promise about memory; a smaller one is taken."""
    coefficients, state = arguments("K1")
    scan = functools.partial(kernels.chunk_scan_of, lambda tokens: tokens, most=16)
    with kernels.tuned(chunk_size=40):
        assert used(scan, coefficients, state)[0] == 10
    with kernels.tuned(chunk_size=8):
        assert used(scan, coefficients, state)[0] == 20
    ssm = ssmkit.models.toy.ToyRecurrence(state_shape=(2, 3, 3), chunk_size=16)
    x = jnp.zeros((TIME, 2, 10), jnp.float32)
    for size, expected in ((40, 10), (8, 20)):
        with kernels.tuned(chunk_size=size):
            assert used(ssm.chunk_scan, x, ssm.init_state())[0] == expected


@pytest.mark.parametrize("form", FORMS)
def test_results_do_not_depend_on_it(form):
    coefficients, state = arguments(form)
    expected = jax.jit(kernels.reference)(coefficients, state)
    for size, schedule in ((7, kernels.serial), (1000, kernels.parallel), (None, None)):
        with kernels.tuned(chunk_size=size, schedule=schedule):
            got = jax.jit(lambda *arguments: kernels.chunk_scan(*arguments))(coefficients, state)
        assert max(map(relative_error, got, expected)) <= 2e-6


# Contexts.


def test_contexts_nest_and_end():
    outside = kernels.tuning()
    assert outside == kernels.Tuning(jax.default_backend(), None, None)
    with kernels.target("tpu"):
        with kernels.tuned(chunk_size=20):
            assert kernels.tuning() == kernels.Tuning("tpu", 20, None)
            with kernels.tuned(schedule=kernels.serial):  # says all anew
                assert kernels.tuning() == kernels.Tuning("tpu", None, kernels.serial)
            with kernels.target("cpu"):
                assert kernels.tuning() == kernels.Tuning("cpu", 20, None)
            assert kernels.tuning() == kernels.Tuning("tpu", 20, None)
        assert kernels.tuning() == kernels.Tuning("tpu")
    assert kernels.tuning() == outside


@pytest.mark.parametrize("context", [lambda: kernels.tuned(chunk_size=20), lambda: kernels.target("tpu")])
def test_contexts_end_with_an_error(context):
    outside = kernels.tuning()
    with pytest.raises(ZeroDivisionError), context():
        assert kernels.tuning() != outside
        raise ZeroDivisionError
    assert kernels.tuning() == outside


@pytest.mark.parametrize("size", [0, -1])
def test_chunk_sizes_that_are_none(size):
    outside = kernels.tuning()
    message = rf"`chunk_size` must be an integer, at least 1, got {size}\."
    with pytest.raises(ValueError, match=message), kernels.tuned(chunk_size=size):
        pass
    assert kernels.tuning() == outside


def test_an_unknown_platform_is_refused():
    with pytest.raises(ValueError, match="`platform` must be one of cpu, gpu, cuda, rocm, tpu, got 'metal'"):
        kernels.target("metal")


# Functions that were compiled before.


@pytest.mark.parametrize("jit", [jax.jit, eqx.filter_jit])
def test_a_compiled_function_is_traced_anew(jit):
    """Once for each tuning; and what was compiled for one is found again."""
    coefficients, state = arguments("K1")
    seen = []

    def noting(coefficients, state):
        seen.append(kernels.tuning())
        return kernels.chunk_scan(coefficients, state)

    scan = jit(noting)
    for _ in range(2):
        scan(coefficients, state)
        with kernels.tuned(chunk_size=20):
            scan(coefficients, state)
        with kernels.target("tpu"):
            scan(coefficients, state)
    usual = kernels.Tuning(jax.default_backend())
    assert seen == [usual, kernels.Tuning(usual.platform, 20), kernels.Tuning("tpu")]


# Models.


@MODEL
def test_a_model_is_traced_anew(case):
    """Its blocks are compiled functions, which remember how they were traced: for which tuning, too."""
    model, tokens = build(case), jnp.arange(12)
    prefill = lambda model, tokens: model.prefill(tokens, model.init_cache())
    forward = lambda model, tokens: model.forward(tokens, model.init_cache())
    for method in (prefill, forward):
        program = functools.partial(method, model)
        usual = used(program, tokens)
        assert usual[0] == 3
        with kernels.tuned(chunk_size=2):
            assert used(program, tokens) == (6, usual[1])
        with kernels.target("cpu"):
            assert used(program, tokens) == (3, "serial")
        with kernels.target("tpu"):
            assert used(program, tokens) == (3, "parallel")
        assert used(program, tokens) == usual
    expected = eqx.filter_jit(prefill)(model, tokens)
    with kernels.tuned(chunk_size=2, schedule=kernels.parallel):
        got = eqx.filter_jit(lambda model, tokens: prefill(model, tokens))(model, tokens)
    assert trees_close(got, expected, case.bound)
