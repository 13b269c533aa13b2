"""The one check of token ids, and that every place where ids come in asks it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmkit
from ssmkit import testing
from ssmkit._ids import read_ids
from ssmkit.models import ToySSM


@pytest.fixture(scope="module")
def model():
    return ToySSM(7, width=4, layers=1, key=jax.random.key(0))


def test_ids_are_arrays_of_integers():
    assert read_ids("`x`", [1, 2], "time").dtype == np.int64
    assert read_ids("`x`", [], "time", least=0).dtype == np.int32
    assert read_ids("`x`", np.uint8(3)).shape == ()
    traced = jax.make_jaxpr(lambda x: read_ids("`x`", x, "batch", "time"))(jnp.zeros((2, 3), int))
    assert not traced.eqns  # nothing is computed with ids that are traced


@pytest.mark.parametrize(
    "given, axes, message",
    [
        ([1.5], ("time",), "`x` must be integer ids of shape (time,), got float64 of shape (1,). Do."),
        ([True], ("time",), "`x` must be integer ids of shape (time,), got bool of shape (1,). Do."),
        ([[1], [2, 3]], ("batch", "time"), "`x` must be integer ids of shape (batch, time), got [[1], [2, 3]]. Do."),
        ([1], (), "`x` must be one integer id, got int64 of shape (1,). Do."),
        ("text", (), "`x` must be one integer id, got 'text'. Do."),
        ([2**70], ("time",), "`x` must be integer ids of shape (time,), got [1180591620717411303424]. Do."),
        ([], ("time",), "`x` must have at least 2 ids, got 0."),
        ([1], ("time",), "`x` must have at least 2 ids, got 1."),
        ([3, -1], ("time",), "`x` must have ids in [0, 7), got ids from -1 to 3. Is this the model's tokenizer?"),
        ([3, 7], ("time",), "`x` must have ids in [0, 7), got ids from 3 to 7. Is this the model's tokenizer?"),
    ],
)
def test_one_message_form(given, axes, message):
    with pytest.raises(ValueError) as caught:
        read_ids("`x`", given, *axes, least=2, vocab_size=7, remedy="Do.")
    assert str(caught.value) == message


def test_every_place_asks_it(model):
    floats = np.arange(3, dtype=np.float32)
    form = r"must be integer ids of shape \(time,\), got float32 of shape \(3,\)"
    cache = model.init_cache()
    for call in (
        lambda: model.prefill(jnp.asarray(floats), cache),
        lambda: model.forward(jnp.asarray(floats), cache),
        lambda: ssmkit.generate(model, [floats], 1),
        lambda: next(ssmkit.stream(model, floats, 1)),
        lambda: ssmkit.score(model, floats),
        lambda: testing.check_model(model, floats),
    ):
        with pytest.raises(ValueError, match=form):
            call()
    with pytest.raises(ValueError, match="`token` must be one integer id, got int32 of shape"):
        model.step(jnp.ones(2, jnp.int32), cache)
