"""The seam where users subclass: what mistakes say, what a small subclass can do, what `length` and `valid` mean."""

import inspect
import itertools
import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, relative_error, trees_equal_bitwise
from jaxtyping import Array

import ssmkit


HEADS, GROUPS, KEY, VALUE, TIME = 4, 2, 3, 5, 6
SHAPE = (HEADS, KEY, VALUE)


def documented_example() -> type[ssmkit.DiagonalChunkedRecurrence]:
    """The class that the documentation of `DiagonalChunkedRecurrence` shows, run as it stands there."""
    lines = inspect.getdoc(ssmkit.DiagonalChunkedRecurrence).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("    class "))
    code = itertools.takewhile(lambda line: not line or line.startswith("    "), lines[start:])
    namespace = {"ssmkit": ssmkit, "jax": jax, "jnp": jnp, "eqx": eqx, "Array": Array, "__name__": __name__}
    exec(textwrap.dedent("\n".join(code)), namespace)
    return namespace["Decay"]


Decay = documented_example()


class Mistaken(ssmkit.DiagonalChunkedRecurrence[Array]):
    """Good coefficients, but for what is changed."""

    changes: dict = eqx.field(static=True)
    state_shape: tuple[int, int, int] = eqx.field(static=True, default=SHAPE)

    def coefficients(self, x):
        shapes = dict(log_decay=(HEADS, 1), write=(GROUPS, KEY), value=(HEADS, VALUE), read=(GROUPS, KEY))
        fields = {name: jnp.zeros(shape, jnp.float32) + x for name, shape in shapes.items()}
        fields |= {
            name: change(fields[name]) if callable(change) else jnp.zeros(change, jnp.float32)
            for name, change in self.changes.items()
        }
        return ssmkit.Coefficients(**fields)


class Pair(ssmkit.DiagonalChunkedRecurrence[Array]):
    """Returns something else."""

    state_shape: tuple[int, int, int] = eqx.field(static=True, default=SHAPE)

    def coefficients(self, x):
        return x, x


# What is changed, and what the message must say: class, field, axis, got, expected.
MISTAKES = {
    "log_decay without its second axis": (
        {"log_decay": (HEADS,)},
        "Mistaken.coefficients: `log_decay` must have the axes (heads, 1 or key) of one token, got shape (4,). "
        "Append `[:, None]` for one decay per head.",
    ),
    "write with a time axis": (
        {"write": (TIME, GROUPS, KEY)},
        "Mistaken.coefficients: `write` and `value` must both have the axis rank or both lack it, got shapes (6, 2, 3) "
        "and (4, 5) for one token. The framework adds the time and batch axes itself.",
    ),
    "value without heads": (
        {"value": (VALUE,)},
        "Mistaken.coefficients: `value` must have the axes (heads, value) or (heads, rank, value) of one token, got "
        "shape (5,). The framework adds the time and batch axes itself.",
    ),
    "read without groups": (
        {"read": (KEY,)},
        "Mistaken.coefficients: `read` must have the axes (groups, key) or (groups, reads, key) of one token, got "
        "shape (3,). The framework adds the time and batch axes itself.",
    ),
    "heads of log_decay": (
        {"log_decay": (3, 1)},
        "Mistaken.coefficients: axis 0 (heads) of `log_decay` must be 4 (the heads of `value`), got 3 in shape (3, 1).",
    ),
    "key of log_decay": (
        {"log_decay": (HEADS, 2)},
        "Mistaken.coefficients: axis 1 (key) of `log_decay` must be 1 or 3 (one decay per head, or one per key channel "
        "of `write`), got 2 in shape (4, 2).",
    ),
    "groups of read": (
        {"read": (1, KEY)},
        "Mistaken.coefficients: axis 0 (groups) of `read` must be 2 (the groups of `write`), got 1 in shape (1, 3).",
    ),
    "key of read": (
        {"read": (GROUPS, 4)},
        "Mistaken.coefficients: axis 1 (key) of `read` must be 3 (the key channels of `write`), got 4 in shape (2, 4).",
    ),
    "groups that do not divide heads": (
        {"write": (3, KEY), "read": (3, KEY)},
        "Mistaken.coefficients: axis 0 (groups) of `write` must divide the 4 heads of `value`, got 3 in shape (3, 3).",
    ),
    "no group": (
        {"write": (0, KEY), "read": (0, KEY)},
        "Mistaken.coefficients: axis 0 (groups) of `write` must divide the 4 heads of `value`, got 0 in shape (0, 3).",
    ),
    "integers": (
        {"value": lambda value: value.astype(int)},
        "Mistaken.coefficients: `value` must be floating point or complex, got int64.",
    ),
    "a log_decay in half precision": (
        {"log_decay": lambda log_decay: log_decay.astype(jnp.bfloat16)},
        "Mistaken.coefficients: `log_decay` must be at least float32, got bfloat16: sums of low-precision logarithms "
        "lose the state. Compute it from `x.astype(jnp.float32)`.",
    ),
    "heads against state_shape": (
        {"log_decay": (2, 1), "value": (2, VALUE)},
        "Mistaken.coefficients: axis 0 (heads) of `value` must be 4, as `state_shape` (4, 3, 5) says, got 2 in shape "
        "(2, 5).",
    ),
    "key against state_shape": (
        {"write": (GROUPS, 7), "read": (GROUPS, 7)},
        "Mistaken.coefficients: axis 1 (key) of `write` must be 3, as `state_shape` (4, 3, 5) says, got 7 in shape "
        "(2, 7).",
    ),
    "value against state_shape": (
        {"value": (HEADS, 7)},
        "Mistaken.coefficients: axis 1 (value) of `value` must be 5, as `state_shape` (4, 3, 5) says, got 7 in shape "
        "(4, 7).",
    ),
}
STATES = {
    "mis-sized": (
        (HEADS, VALUE, KEY),
        "Mistaken: `state` must have shape (heads, key, value) = (4, 3, 5), got (4, 5, 3). Start from `init_state()`.",
    ),
    "batched": (
        (2, *SHAPE),
        "Mistaken: `state` must have shape (heads, key, value) = (4, 3, 5), got (2, 4, 3, 5). Start from "
        "`init_state()`.",
    ),
}


def message_of(function) -> str:
    """The message of the error that this raises, with its type."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def struct(*shape: int) -> jax.ShapeDtypeStruct:
    """An array without data: mistakes are found before anything is computed."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def message_of_step(changes, state_shape=SHAPE) -> str:
    token, state = struct(), struct(*state_shape)
    return message_of(lambda: jax.eval_shape(Mistaken(changes).step, token, state))


def message_of_scan(changes, state_shape=SHAPE) -> str:
    inputs, state = struct(TIME), struct(*state_shape)
    return message_of(lambda: jax.eval_shape(Mistaken(changes).chunk_scan, inputs, state))


def test_without_a_mistake_nothing_is_raised():
    """So that every message below comes from its own mistake."""
    assert message_of_step({}) == message_of_scan({}) == "nothing was raised"
    assert message_of_step({"log_decay": (HEADS, KEY)}) == "nothing was raised"


@pytest.mark.parametrize("changes, expected", MISTAKES.values(), ids=MISTAKES)
def test_mistaken_coefficients(changes, expected):
    assert message_of_step(changes) == message_of_scan(changes) == f"ValueError: {expected}"


def test_a_mistake_is_found_without_jit_too():
    changes, expected = MISTAKES["key of read"]
    run = lambda: Mistaken(changes).step(jnp.float32(1.0), jnp.zeros(SHAPE, jnp.float32))
    assert message_of(run) == f"ValueError: {expected}"


@pytest.mark.parametrize("method", ["step", "chunk_scan"])
def test_something_else_than_coefficients(method):
    run = lambda: getattr(Pair(), method)(jnp.ones((TIME, 2)), jnp.zeros(SHAPE, jnp.float32))
    assert message_of(run) == "TypeError: Pair.coefficients must return `ssmkit.Coefficients`, got tuple."


@pytest.mark.parametrize("shape, expected", STATES.values(), ids=STATES)
@pytest.mark.parametrize("message", [message_of_step, message_of_scan], ids=["step", "chunk_scan"])
def test_a_mis_shaped_state(message, shape, expected):
    assert message({}, shape) == f"ValueError: {expected}"


@pytest.mark.parametrize(
    "inputs, shapes",
    [((np.ones(3), np.ones(4)), "[(3,), (4,)]"), ((np.ones(3), np.float64(1)), "[(3,), ()]"), ((), "[]")],
    ids=["unequal", "scalar", "none"],
)
def test_inputs_without_a_common_time_axis(inputs, shapes):
    got = message_of(lambda: Pair().chunk_scan(jax.tree.map(jnp.asarray, inputs), jnp.zeros(SHAPE, jnp.float32)))
    expected = "every array of `inputs` must have the same leading axis (time), got shapes"
    assert got == f"ValueError: Pair.chunk_scan: {expected} {shapes}."


def messages() -> dict[str, str]:
    """Every message above, for the interpreter without the type checker."""
    found = {name: message_of_step(changes) for name, (changes, _) in MISTAKES.items()}
    found |= {f"{name}, scanned": message_of_scan(changes) for name, (changes, _) in MISTAKES.items()}
    for name, (shape, _) in STATES.items():
        found |= {f"{name} state": message_of_step({}, shape), f"{name} state, scanned": message_of_scan({}, shape)}
    found["number"] = message_of(lambda: ssmkit.Coefficients(1.0, *[jnp.zeros((1, 1))] * 3))
    found["no mistake"] = message_of_scan({})
    return found


def test_messages_are_the_same_without_the_type_checker():
    """And without x64: here `astype(int)` is int32."""
    environment = dict(os.environ, SSMKIT_TYPECHECK="0")
    here = Path(__file__).parent
    code = "import json, test_recurrence; print(json.dumps(test_recurrence.messages()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = {name: message.replace("int64", "int32") for name, (_, message) in MISTAKES.items()}
    expected |= {f"{name} state": message for name, (_, message) in STATES.items()}
    expected |= {f"{name}, scanned": message for name, message in expected.items()}
    expected["number"] = "`log_decay` must be a JAX or NumPy array with axes (heads, 1 or key), got float."
    expected = {name: f"ValueError: {message}" for name, message in expected.items()}
    expected["no mistake"] = "nothing was raised"
    assert json.loads(run.stdout) == expected


def test_a_number_where_an_array_belongs():
    got = message_of(lambda: ssmkit.Coefficients(1.0, *[jnp.zeros((1, 1))] * 3))
    assert got == "ValueError: `log_decay` must be a JAX or NumPy array with axes (heads, 1 or key), got float."


@pytest.mark.parametrize("cls", [ssmkit.DiagonalChunkedRecurrence, ssmkit.AbstractRecurrentMixer])
def test_abstract_classes_say_what_is_missing(cls):
    with pytest.raises(TypeError, match="abstract"):
        cls()


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
    traced = jit(lambda length: decay.chunk_scan(tokens, state, length=length))
    for length in (0, 1, 4, TIME):
        if dtype is None:
            outputs, final = jit(lambda: decay.chunk_scan(tokens, state, length=length))()  # noqa: B023
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
        return decay.chunk_scan(tokens, state, length=length)

    for length in range(TIME + 1):
        assert relative_error(run(length)[1], by_hand(decay, tokens[:length], state)[1]) <= BOUND
    assert len(traces) == 1


def test_not_a_number_in_a_padded_token_does_not_reach_the_state(decay, tokens):
    state = decay.init_state() + 1.0
    scan = jit(lambda tokens: decay.chunk_scan(tokens, state, length=3))
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
    _, final = jit(lambda: decay.chunk_scan(tokens, state, length=0))()
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
        outputs, state = Unit(weight, chunk_size=4).chunk_scan(x, jnp.zeros((1, 3, 2), jnp.float32), length=length)
        return jnp.sum(outputs[:5]) + jnp.sum(state)

    weight = jnp.asarray([1.0, 2.0, 3.0], jnp.float32)
    padded = jit(jax.grad(loss, argnums=(0, 1)))(weight, x.at[5:].set(garbage), 5)
    alone = jit(jax.grad(loss, argnums=(0, 1)))(weight, x[:5], None)
    assert relative_error(padded[0], alone[0]) <= BOUND
    assert relative_error(padded[1][:5], alone[1]) <= BOUND
    assert not np.any(padded[1][5:])


def test_a_traced_length_is_clipped(decay, tokens):
    run = jit(lambda length: decay.chunk_scan(tokens, decay.init_state(), length=length)[1])
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


# What a class says of itself.


def declared(**fields):
    """A recurrence with these fields, each a value or an `eqx.field`; static ones by default."""
    kinds = {"state_shape": Any, **dict.fromkeys(fields, Any)}
    static = {"state_shape": eqx.field(static=True, default=SHAPE)}
    body = {"__annotations__": kinds, "coefficients": lambda self, x: Mistaken({}).coefficients(x)}
    return type("Declared", (ssmkit.DiagonalChunkedRecurrence,), body | static | fields)


@pytest.mark.parametrize("name", ["state_shape", "chunk_size", "state_dtype"])
def test_a_field_that_would_be_traced_is_refused(name):
    """It passes every law, and breaks under `jax.jit(lambda module: ..)(module)`."""
    value = {"state_shape": SHAPE, "chunk_size": 4, "state_dtype": "float32"}[name]
    message = message_of(declared(**{name: eqx.field(default=value)}))
    assert message == (
        f"ValueError: Declared: `{name}` must be static, or `jax.jit` takes it for data: declare it as `{name}: ... = "
        "eqx.field(static=True)`."
    )
    recurrence = declared(**{name: eqx.field(static=True, default=value)})()
    run = lambda module: module.step(jnp.float32(1.0), module.init_state())
    assert jax.eval_shape(run, recurrence)[1].shape == SHAPE


class Property(ssmkit.DiagonalChunkedRecurrence[Array]):
    """Its state's shape is computed: from a size, the shape of an array and the number of entries of a tuple."""

    size: eqx.AbstractVar[int]
    rate: Array = eqx.field(default_factory=lambda: jnp.zeros(3))
    names: tuple[str, ...] = ("a", "b", "c", "d", "e")

    @property
    def state_shape(self):
        return self.size, self.rate.shape[0], len(self.names)

    def coefficients(self, x):
        return Mistaken({}).coefficients(x)


class StaticSize(Property):
    size: int = eqx.field(static=True, default=4)


class TracedSize(Property):
    size: int = 4


def test_a_field_that_a_shape_is_computed_from():
    assert message_of(TracedSize) == (
        "ValueError: TracedSize: `state_shape` depends on `size`, which must be static, or `jax.jit` takes it for "
        "data: declare it as `size: ... = eqx.field(static=True)`."
    )
    assert StaticSize().state_shape == SHAPE
    state = eqx.filter_eval_shape(lambda module: module.init_state(), StaticSize())
    assert state.shape == SHAPE


@pytest.mark.parametrize(
    "shape",
    [[4, 3, 5], (4, 3), (4, 3, 5, 1), (4.0, 3, 5), (4, 0, 5), (4, -3, 5), (True, 3, 5), ("4", 3, 5), 60, None, "435"],
    ids=str,
)
def test_what_is_no_state_shape(shape):
    message = message_of(declared(state_shape=eqx.field(static=True, default_factory=lambda: shape)))
    assert message == (
        "ValueError: Declared: `state_shape` must be a tuple of three integers, at least 1, (heads, key, value), got "
        f"{shape!r}."
    )


def test_a_traced_state_shape_is_refused():
    cls = declared(state_shape=eqx.field(static=True))
    with warnings.catch_warnings(action="ignore"):  # equinox has something to say too
        message = message_of(lambda: jax.eval_shape(lambda n: cls((n, 3, 5)).init_state(), jnp.asarray(4)))
    assert message.startswith("ValueError: Declared: `state_shape` must be a tuple of three integers, at least 1")


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "8"])
def test_what_is_no_chunk_size(size):
    message = message_of(lambda: Pair(chunk_size=size))
    assert message == f"ValueError: Pair: `chunk_size` must be an integer, at least 1, or None, got {size!r}."


class Indexing(ssmkit.DiagonalChunkedRecurrence[Array]):
    """Takes its token apart, as most do."""

    state_shape: tuple[int, int, int] = eqx.field(static=True, default=(2, 3, 3))

    def coefficients(self, x):  # (heads, 4)
        decay = jax.nn.log_sigmoid(x[:, 3:])
        return ssmkit.Coefficients(decay, x[:, :3], x[:, :3], x[:, :3])


def test_one_token_where_many_belong_and_the_other_way_round():
    x = jnp.ones((TIME, 2, 4), jnp.float32) * jnp.arange(TIME, dtype=jnp.float32)[:, None, None]
    recurrence = Indexing()
    state = recurrence.init_state()
    one = "`inputs` are those of one token, of shapes (2, 4): put an axis of tokens (time) in front, `x[None]`, or use"
    for run in (
        lambda: recurrence.chunk_scan(x[0], state),
        lambda: ssmkit.testing.check_recurrence(recurrence, jnp.asarray(x[1]).at[0, 0].set(5.0)),
        lambda: ssmkit.testing.check_operator(recurrence, jnp.asarray(x[1]).at[0, 0].set(5.0)),
    ):
        assert message_of(run) == f"ValueError: Indexing.chunk_scan: {one} `step`."
    assert message_of(lambda: recurrence.step(x, state)) == (
        "ValueError: Indexing.step: `inputs` are those of many tokens, of shapes (6, 2, 4): a step takes one, `x[0]`; "
        "many are for `chunk_scan`."
    )
