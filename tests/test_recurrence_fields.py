"""What a recurrence may say of itself: static fields, the shape of its state, its chunk size."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array
from mistaken import SHAPE, TIME, Mistaken, Pair, message_of

import ssmkit


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
