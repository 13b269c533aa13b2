"""The chunked kernels and the step against the token-by-token reference in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import all_finite, jit, many_tokens, random_coefficients, relative_error, trees_close, trees_equal_bitwise
from kernel_runs import (
    BOUND,
    HEADS,
    KEY,
    REFERENCE,
    REFERENCE_WITH_GRADIENTS,
    RESULTS,
    SCHEDULES,
    STEP,
    VALUE,
    cotangents_of,
    decays_of_differences,
    errors,
    in_chunks,
    in_float64,
    scan,
    scan_with_gradients,
    with_gradients,
)

import ssmkit
from ssmkit import kernels
from ssmkit.kernels import _scalar
from ssmkit.kernels._platform import TILE


# (chunk, groups, time): time is never a multiple of the chunk, but where the chunk is 1.
SHAPES = [(1, 2, 67), (16, 1, 67), (64, HEADS, 67), (256, 2, 301)]


@pytest.mark.parametrize("cumulative", [-1e-3, -400.0, -20000.0])
@pytest.mark.parametrize("chunk, groups, time", SHAPES, ids=lambda size: str(size))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_chunk_scan_and_gradients_match_the_reference(schedule, chunk, groups, time, cumulative):
    coefficients, state = random_coefficients(
        0, time=time, heads=HEADS, groups=groups, key=KEY, value=VALUE, cumulative=cumulative, chunk=chunk
    )
    arguments = coefficients, state, cotangents_of(1, coefficients.value, state)
    found = errors(scan_with_gradients(schedule, chunk), *arguments)
    assert max(found.values()) <= BOUND, found
    if (chunk, schedule) == (64, "serial"):  # and as users compile it
        found = errors(scan_with_gradients(schedule, chunk, jax.jit), *arguments)
        assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("form", [dict(groups=1), dict(groups=2), dict(groups=2, decays=TILE)], ids=str)
def test_chunks_of_whole_tiles(form):
    """A TPU cuts them out of the sequence, and keeps states by channel: results are the same, gradients included."""
    coefficients, state = random_coefficients(
        2, **dict(time=300, heads=4, key=TILE, value=3, cumulative=-400.0, chunk=TILE) | form
    )
    run = with_gradients(in_chunks(TILE, kernels.parallel))
    outputs = jax.ShapeDtypeStruct((300, 4, 3), jnp.float32)
    assert max(errors(run, coefficients, state, cotangents_of(3, outputs, state)).values()) <= BOUND


def test_cumsum_differences_would_fail(monkeypatch):
    """The bound has teeth: the usual decays break it where they are small."""
    monkeypatch.setattr(_scalar, "pairwise_decays", decays_of_differences)
    coefficients, state = random_coefficients(
        0, time=67, heads=HEADS, groups=2, key=KEY, value=VALUE, cumulative=-20000.0, chunk=64
    )
    outputs, _ = scan.__wrapped__("serial", 64)(coefficients, state)
    expected, _ = REFERENCE(*in_float64((coefficients, state)))
    assert relative_error(outputs, expected) > 5 * BOUND


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("decay", [0.0, -math.inf, "mixed"])
def test_remembering_and_forgetting_everything(schedule, decay):
    """A log-decay of exactly 0, of -inf, and every third token -inf among ordinary ones, gradients included."""
    coefficients, state = random_coefficients(
        2, time=67, heads=HEADS, groups=HEADS, key=KEY, value=VALUE, cumulative=-5.0, chunk=64
    )
    log_decay = coefficients.log_decay.at[::3].set(-jnp.inf) if decay == "mixed" else jnp.full((67, HEADS, 1), decay)
    fields = coefficients.write, coefficients.value, coefficients.read
    coefficients = many_tokens(log_decay.astype(jnp.float32), *fields)
    found = errors(scan_with_gradients(schedule, 64), coefficients, state, cotangents_of(3, coefficients.value, state))
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("groups", [1, 2, HEADS])
def test_step_and_gradients_match_the_reference(groups):
    coefficients, state = random_coefficients(
        4, time=5, heads=HEADS, groups=groups, key=KEY, value=VALUE, cumulative=-2.0, chunk=5
    )
    run = with_gradients(kernels.step)
    for decay in (coefficients.log_decay[0], jnp.zeros((HEADS, 1)), jnp.full((HEADS, 1), -jnp.inf)):
        token = jax.tree.map(lambda array: array[0], coefficients)
        token = ssmkit.Coefficients(decay.astype(jnp.float32), token.write, token.value, token.read)
        cotangents = cotangents_of(5, token.value, state)
        got = run(token, state, cotangents)
        many = (jax.tree.map(lambda array: array[None], token), state, (cotangents[0][None], cotangents[1]))
        expected = REFERENCE_WITH_GRADIENTS(*in_float64(many))
        for name, a, b in zip(RESULTS, got, expected, strict=True):
            assert a is b is None or relative_error(a, b.reshape(a.shape)) <= BOUND, name


@pytest.fixture(scope="module")
def sequence():
    """Coefficients of 67 tokens, a state, and the float64 answer."""
    coefficients, state = random_coefficients(
        8, time=67, heads=HEADS, groups=2, key=KEY, value=VALUE, cumulative=-3.0, chunk=67
    )
    return coefficients, state, REFERENCE(*in_float64((coefficients, state)))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("chunk", [50, 1000])
def test_any_chunk_size(sequence, schedule, chunk):
    """Also those that no block of the pairwise decays divides, and those longer than the sequence."""
    coefficients, state, expected = sequence
    assert max(map(relative_error, scan(schedule, chunk)(coefficients, state), expected)) <= BOUND


def test_the_backend_chooses_when_nothing_is_said(sequence):
    coefficients, state, expected = sequence
    assert max(map(relative_error, jit(kernels.chunk_scan)(coefficients, state), expected)) <= BOUND


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_token_and_one_token(sequence, schedule):
    coefficients, state, expected = sequence
    cut = lambda time: jax.tree.map(lambda array: array[:time], coefficients)
    outputs, final = scan(schedule, 50)(cut(0), state)
    assert outputs.shape == (0, HEADS, VALUE)
    assert trees_equal_bitwise(final, state)
    outputs, final = scan(schedule, 50)(cut(1), state)
    token = jax.tree.map(lambda array: array[0], coefficients)
    assert trees_close((outputs[0], final), STEP(token, state), BOUND)
    assert relative_error(outputs[0], expected[0][0]) <= BOUND


def run_one(kernel, coefficients, state):
    """The first token through one of the two kernels, and through the reference."""
    token = jax.tree.map(lambda array: array[0], coefficients)
    one = jax.tree.map(lambda array: array[:1], coefficients)
    outputs, final = STEP(token, state) if kernel == "step" else scan(kernel, 16)(one, state)
    return (jnp.reshape(outputs, (1, HEADS, VALUE)), final), REFERENCE(*in_float64((one, state)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("kernel", ["serial", "step"])
def test_the_state_keeps_its_dtype(sequence, kernel, dtype):
    """And the sum is done in the widest precision at hand: the state is rounded once, at the end."""
    coefficients, state, _ = sequence
    (outputs, final), expected = run_one(kernel, coefficients, state.astype(dtype))
    assert final.dtype == dtype
    assert outputs.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert relative_error(outputs, expected[0]) <= BOUND
    assert relative_error(final, expected[1]) <= (2**-8 if dtype == jnp.bfloat16 else BOUND)


@pytest.mark.parametrize("kernel", ["serial", "step"])
def test_narrow_operands_are_widened_before_they_are_multiplied(sequence, kernel):
    coefficients, state, _ = sequence
    narrow = [array.astype(jnp.bfloat16) for array in (coefficients.write, coefficients.value, coefficients.read)]
    (outputs, final), expected = run_one(kernel, many_tokens(coefficients.log_decay, *narrow), state)
    assert (outputs.dtype, final.dtype) == (jnp.float32, jnp.float32)
    assert max(map(relative_error, (outputs, final), expected)) <= BOUND


def test_all_finite_finds_what_is_not():
    assert all_finite((jnp.ones(2), jnp.arange(3)))
    assert not all_finite((jnp.ones(2), jnp.asarray([0.0, -jnp.inf])))


def one_token():
    fields = [jnp.zeros(shape, jnp.float32) for shape in ((4, 1), (2, 3), (4, 5), (2, 3))]
    return ssmkit.Coefficients(*fields)


def many():
    return jax.vmap(lambda _: one_token())(jnp.zeros(7))


STATE = np.zeros((4, 3, 5), np.float32)


@pytest.mark.parametrize(
    "run, message",
    [
        (
            lambda: kernels.chunk_scan(one_token(), STATE),
            r"with a leading axis \(time\), got `log_decay` of shape \(4, 1",
        ),
        (
            lambda: kernels.reference(one_token(), STATE),
            r"with a leading axis \(time\), got `log_decay` of shape \(4, 1",
        ),
        (
            lambda: kernels.step(many(), STATE),
            r"those of one token, got `log_decay` of shape \(7, 4, 1\). Many tokens are",
        ),
        (lambda: kernels.step((1, 2), STATE), "`coefficients` must be `ssmkit.Coefficients`, got tuple"),
        (lambda: kernels.chunk_scan(None, STATE), "`coefficients` must be `ssmkit.Coefficients`, got NoneType"),
        (
            lambda: kernels.step(one_token(), STATE.astype(np.float16)),
            "`state` must be .*, got float16. float16 is refused",
        ),
        (lambda: kernels.chunk_scan(many(), STATE.astype(np.float16)), "`state` must be .*, got float16"),
        (lambda: kernels.step(one_token(), STATE.astype(int)), "`state` must be a floating-point .*, got int64"),
        (lambda: kernels.step(one_token(), 0.0), "`state` must be a floating-point or complex array, got float"),
        (lambda: kernels.step(one_token(), STATE[:2]), r"\(heads, key, value\) = \(4, 3, 5\), .* got \(2, 3, 5\)"),
        (
            lambda: kernels.chunk_scan(many(), STATE[None]),
            r"= \(4, 3, 5\), as the coefficients say, got \(1, 4, 3, 5\)",
        ),
        (lambda: kernels.tuned(schedule="serial"), "`schedule` must be `kernels.serial` or"),
    ],
)
def test_what_a_kernel_refuses(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_a_state_in_numpy_will_do():
    for run, coefficients in ((kernels.step, one_token()), (kernels.chunk_scan, many()), (kernels.reference, many())):
        assert trees_equal_bitwise(run(coefficients, STATE), run(coefficients, jnp.asarray(STATE)))
