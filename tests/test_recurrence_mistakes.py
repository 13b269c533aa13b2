"""What is said when the coefficients, states or inputs of a recurrence are mistaken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mistaken import GROUPS, HEADS, KEY, SHAPE, TIME, VALUE, Mistaken, Pair, message_of

import ssmkit


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
    code = "import json, test_recurrence_mistakes as these; print(json.dumps(these.messages()))"
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
