"""The seam where users subclass: what a small subclass can do, what `length` and `valid` mean."""

import inspect
import itertools
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, relative_error, trees_equal_bitwise
from jaxtyping import Array
from mistaken import GROUPS, HEADS, KEY, SHAPE, TIME, VALUE

import ssmkit


def documented_example() -> type[ssmkit.DiagonalChunkedRecurrence]:
    """The class that the documentation of `DiagonalChunkedRecurrence` shows, run as it stands there."""
    lines = inspect.getdoc(ssmkit.DiagonalChunkedRecurrence).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("    class "))
    code = itertools.takewhile(lambda line: not line or line.startswith("    "), lines[start:])
    namespace = {"ssmkit": ssmkit, "jax": jax, "jnp": jnp, "eqx": eqx, "Array": Array, "__name__": __name__}
    exec(textwrap.dedent("\n".join(code)), namespace)
    return namespace["Decay"]


Decay = documented_example()


# A small subclass.


@pytest.fixture(scope="module")
def decay():
    """The documented example: float32, but for `ones`, which x64 makes float64."""
    rate = jnp.linspace(-2.0, 1.0, HEADS, dtype=jnp.float32)
    return Decay(rate=rate, state_shape=SHAPE)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).normal(size=(TIME, HEADS, VALUE)), jnp.float32)


def by_hand(decay, tokens, state):
    """The recurrence as a loop over NumPy arrays."""
    log_decay = decay.coefficients(jnp.zeros((HEADS, VALUE), jnp.float32)).log_decay
    factor = np.exp(np.asarray(log_decay, np.float64))[:, :, None]
    state, outputs = np.asarray(state, np.float64), []
    for token in np.asarray(tokens, np.float64):
        state = factor * state + token[:, None, :]
        outputs.append(state.sum(axis=1))
    return np.asarray(outputs), state


# Float32 rounding of a sum of a handful of terms.
BOUND = 1e-6


def test_a_subclass_runs_under_jit(decay, tokens):
    outputs, state = jit(lambda *inputs: decay.chunk_scan(*inputs))(tokens, decay.init_state())
    expected, expected_state = by_hand(decay, tokens, decay.init_state())
    assert relative_error(outputs, expected) <= BOUND
    assert relative_error(state, expected_state) <= BOUND
    step = jit(lambda *inputs: decay.step(*inputs))
    state = decay.init_state()
    for token, expected_output in zip(tokens, expected, strict=True):
        output, state = step(token, state)
        assert relative_error(output, expected_output) <= BOUND
    assert relative_error(state, expected_state) <= BOUND


def test_a_subclass_runs_under_vmap(decay, tokens):
    batch = jnp.stack([tokens, 2 * tokens, tokens[::-1]])
    states = jnp.stack([decay.init_state() + value for value in (0.0, 1.0, -1.0)])
    outputs, finals = jit(jax.vmap(lambda *inputs: decay.chunk_scan(*inputs)))(batch, states)
    for row in range(3):
        expected, expected_final = by_hand(decay, batch[row], states[row])
        assert relative_error(outputs[row], expected) <= BOUND
        assert relative_error(finals[row], expected_final) <= BOUND


def test_a_subclass_has_gradients(decay, tokens):
    """In its parameters, inputs and state, against central differences in float64."""
    inputs = (decay.rate, tokens, decay.init_state() + 1.0)
    inputs = tuple(array.astype(jnp.float64) for array in inputs)

    def loss(rate, tokens, state):
        outputs, final = Decay(rate=rate, state_shape=SHAPE).chunk_scan(tokens, state)
        return jnp.sum(jnp.sin(outputs)) + jnp.sum(jnp.cos(final))

    gradients = jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)
    evaluate = jit(loss)
    rng = np.random.default_rng(1)
    for place, gradient in enumerate(gradients):
        direction = jnp.asarray(rng.normal(size=gradient.shape))
        moved = [
            evaluate(*inputs[:place], inputs[place] + step * direction, *inputs[place + 1 :]) for step in (1e-5, -1e-5)
        ]
        # The differences are good to 1e-10 / 1e-5 of the loss, which is of the order of 10.
        np.testing.assert_allclose(jnp.vdot(gradient, direction), (moved[0] - moved[1]) / 2e-5, rtol=1e-7, atol=1e-7)


def test_the_state_begins_with_zeros_in_float32(decay):
    state = decay.init_state()
    assert (state.shape, state.dtype) == (SHAPE, jnp.float32)
    assert not np.any(state)


# `length` and `valid`.


@pytest.mark.parametrize("dtype", [None, jnp.int64, jnp.int32, jnp.int8], ids=["static", "int64", "int32", "int8"])
def test_length_counts_valid_tokens(decay, tokens, dtype):
    """As a Python number, static under `jit`, or an array of any signed integer type."""
    state = decay.init_state() + 1.0
    traced = jit(lambda length: decay.chunk_scan(tokens, state, ssmkit.Extent(length=length)))
    for length in (0, 1, 4, TIME):
        if dtype is None:
            outputs, final = jit(lambda: decay.chunk_scan(tokens, state, ssmkit.Extent(length=length)))()  # noqa: B023
        else:
            outputs, final = traced(np.asarray(length, dtype))
        expected, expected_final = by_hand(decay, tokens[:length], state)
        assert np.isfinite(outputs).all()
        assert relative_error(final, expected_final) <= BOUND
        assert relative_error(np.asarray(outputs)[:length], expected.reshape(length, HEADS, VALUE)) <= BOUND
        if length == 0:
            assert trees_equal_bitwise(final, state)


def test_a_traced_length_is_not_compiled_again(decay, tokens):
    state = decay.init_state() + 1.0
    traces = []

    @jit
    def run(length):
        traces.append(length)
        return decay.chunk_scan(tokens, state, ssmkit.Extent(length=length))

    for length in range(TIME + 1):
        assert relative_error(run(length)[1], by_hand(decay, tokens[:length], state)[1]) <= BOUND
    assert len(traces) == 1


def test_not_a_number_in_a_padded_token_does_not_reach_the_state(decay, tokens):
    state = decay.init_state() + 1.0
    scan = jit(lambda tokens: decay.chunk_scan(tokens, state, ssmkit.Extent(length=3)))
    step = jit(lambda token: decay.step(token, state, valid=False))
    expected = scan(tokens)
    for bad in (jnp.nan, jnp.inf):
        outputs, final = scan(tokens.at[3:].set(bad))
        assert trees_equal_bitwise((outputs[:3], final), (expected[0][:3], expected[1]))
        assert trees_equal_bitwise(step(jnp.full_like(tokens[0], bad))[1], state)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_where_makes_any_coefficients_the_identity_step(bad):
    """Each field is replaced: one NaN left over would reach the state."""
    shapes = (HEADS, 1), (GROUPS, KEY), (HEADS, VALUE), (GROUPS, KEY)
    coefficients = ssmkit.Coefficients(*[jnp.full(shape, bad, jnp.float32) for shape in shapes])
    state = jnp.resize(jnp.asarray([1.0, -2.0, 1 / 3], jnp.float32), SHAPE)
    run = jit(lambda valid: ssmkit.kernels.step(coefficients.where(valid), state))
    output, final = run(False)
    assert trees_equal_bitwise(final, state)
    assert not np.any(output)
    assert not np.isfinite(run(True)[1]).any()
    assert trees_equal_bitwise(coefficients.where(True), coefficients)


@pytest.mark.parametrize("valid", [True, jnp.asarray(True), None], ids=["bool", "array", "none"])
def test_a_valid_step_changes_the_state(decay, tokens, valid):
    state = decay.init_state() + 1.0
    output, final = decay.step(tokens[0], state, valid=valid)
    expected, expected_final = by_hand(decay, tokens[:1], state)
    assert relative_error(output, expected[0]) <= BOUND
    assert relative_error(final, expected_final) <= BOUND


@pytest.mark.parametrize("valid", [False, jnp.asarray(False)], ids=["bool", "array"])
def test_an_invalid_step_leaves_the_state_alone(decay, tokens, valid):
    """Bit for bit, the smallest normal numbers and the largest ones too."""
    tiny, huge = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    state = jnp.resize(jnp.asarray([1.0, 0.0, tiny, -tiny, huge, -huge, 1 / 3], jnp.float32), SHAPE)
    output, final = jit(lambda: decay.step(tokens[0], state, valid=valid))()
    assert trees_equal_bitwise(final, state)
    assert output.shape == (HEADS, VALUE)
    _, final = jit(lambda: decay.chunk_scan(tokens, state, ssmkit.Extent(length=0)))()
    assert trees_equal_bitwise(final, state)


class Unit(ssmkit.DiagonalChunkedRecurrence):
    """Singular at zero, where its gradient is not a number."""

    weight: jax.Array
    state_shape: tuple[int, int, int] = eqx.field(static=True, default=(1, 3, 2))

    def coefficients(self, x):
        x = x * self.weight
        x = x / jnp.linalg.norm(x)
        return ssmkit.Coefficients(jnp.full((1, 1), -0.1, jnp.float32), x[None], x[None, :2], x[None])


@pytest.mark.parametrize("garbage", [0.0, np.nan, 7.0])
def test_gradients_do_not_depend_on_padding(garbage):
    """Coefficients may be singular at zero, which padding is made of."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32)

    def loss(weight, x, length):
        outputs, state = Unit(weight, chunk_size=4).chunk_scan(
            x, jnp.zeros((1, 3, 2), jnp.float32), ssmkit.Extent(length=length)
        )
        return jnp.sum(outputs[:5]) + jnp.sum(state)

    weight = jnp.asarray([1.0, 2.0, 3.0], jnp.float32)
    padded = jit(jax.grad(loss, argnums=(0, 1)))(weight, x.at[5:].set(garbage), 5)
    alone = jit(jax.grad(loss, argnums=(0, 1)))(weight, x[:5], None)
    assert relative_error(padded[0], alone[0]) <= BOUND
    assert relative_error(padded[1][:5], alone[1]) <= BOUND
    assert not np.any(padded[1][5:])


def test_a_traced_length_is_clipped(decay, tokens):
    run = jit(lambda length: decay.chunk_scan(tokens, decay.init_state(), ssmkit.Extent(length=length))[1])
    assert trees_equal_bitwise(run(TIME + 3), run(TIME))
    assert trees_equal_bitwise(run(-1), run(0))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.float16, "text"])
def test_a_state_of_the_wrong_dtype_is_refused(decay, tokens, dtype):
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    with pytest.raises(ValueError, match=f"Unit: `state_dtype` must be float32 or complex64 .*, got '?{name}"):
        Unit(jnp.ones(3), state_dtype=dtype)
    if name == "text":
        return
    kind = "a floating-point or complex array" if dtype == jnp.int32 else "at least float32"
    state = decay.init_state().astype(dtype)
    for run in (lambda: decay.step(tokens[0], state), lambda: decay.chunk_scan(tokens, state)):
        with pytest.raises(
            ValueError, match=rf"Decay: `state` must be {kind}, got {name}\W.*Start from `init_state\(\)`"
        ):
            run()


def test_numpy_arrays_will_do(decay, tokens):
    """As inputs, as a state, and as coefficients."""

    class Numpy(ssmkit.DiagonalChunkedRecurrence[Array]):
        state_shape: tuple[int, int, int] = eqx.field(static=True, default=SHAPE)

        def coefficients(self, x):
            ones = np.ones((1, KEY), np.float32)
            return ssmkit.Coefficients(np.full((HEADS, 1), -0.5, np.float32), ones, x, ones)

    state = np.ones(SHAPE, np.float32)
    for recurrence in (decay, Numpy()):
        expected = recurrence.chunk_scan(tokens, jnp.asarray(state))
        assert trees_equal_bitwise(recurrence.chunk_scan(np.asarray(tokens), state), expected)
        expected = recurrence.step(tokens[0], jnp.asarray(state))
        assert trees_equal_bitwise(recurrence.step(np.asarray(tokens[0]), state), expected)
