"""What `ssmkit.testing` catches before any law, and how arrays are compared."""

import numpy as np
import pytest
from law_names import matches
from lawbreakers import TIME, TOKENS, WIDTH, Decaying, Mean, NotCoefficients, Smooth, Sum, check, features
from lawbreaking_models import Model, model

from ssmkit import testing
from ssmkit.testing._report import close, identical


# What is caught before any law.


@pytest.mark.parametrize("name", ["init_state", "chunk_scan", "step"])
def test_what_is_final_cannot_be_overridden(name):
    with pytest.raises(TypeError) as caught:
        type("Own", (Decaying,), {name: getattr(Decaying, name)})
    assert str(caught.value) == (
        f"Own.{name} overrides `DiagonalChunkedRecurrence.{name}`, which is final: what is computed over many tokens "
        "and over one must agree. Write `coefficients`."
    )


@pytest.mark.parametrize(
    "module, error, says",
    [
        (
            Decaying(groups=3),
            ValueError,
            "Decaying.coefficients: axis 0 (groups) of `write` must divide the 2 heads of `value`, got 3 in shape "
            "(3, 1).",
        ),
        (NotCoefficients(), TypeError, "NotCoefficients.coefficients must return `ssmkit.Coefficients`, got tuple."),
    ],
    ids=["groups", "something else"],
)
def test_mistaken_coefficients_name_their_class(module, error, says):
    with pytest.raises(error) as caught:
        check(module)
    assert str(caught.value) == says


KINDS = [
    (testing.check_operator, "AbstractSequenceOperator", Smooth),
    (testing.check_recurrence, "DiagonalChunkedRecurrence", Sum),
    (testing.check_mixer, "AbstractMixer", Sum),
    (testing.check_model, "AbstractLanguageModel", Smooth),
]


@pytest.mark.parametrize("function, expected, make", KINDS, ids=[kind for _, kind, _ in KINDS])
def test_another_kind(function, expected, make):
    with pytest.raises(TypeError) as caught:
        function(make(), features())
    assert str(caught.value) == f"expected an instance of `ssmkit.{expected}`, got {make.__name__}."


@pytest.mark.parametrize(
    "inputs, shapes",
    [
        ((np.ones(1), np.ones(1)), "[(1,), (1,)]"),
        ((np.ones(3), np.ones(4)), "[(3,), (4,)]"),
        ((np.ones(3), 1.0), "[(3,), ()]"),
        ((), "[]"),
    ],
    ids=["too short", "unequal", "a scalar", "nothing"],
)
def test_inputs_without_time(inputs, shapes):
    with pytest.raises(ValueError) as caught:
        testing.check_operator(Sum(), inputs)
    assert str(caught.value) == (
        f"every array of `inputs` must have the same leading axis (time), of at least 2 tokens, got shapes {shapes}."
    )


@pytest.mark.parametrize(
    "run, says",
    [
        (
            lambda: testing.check_mixer(Smooth(), features()[:, 0]),
            "`x` must be floating point of shape (time, width), got float32 of shape (7,).",
        ),
        (
            lambda: testing.check_model(model(Model), TOKENS[:, None]),
            "`tokens` must be integer ids of shape (time,), got int32 of shape (7, 1).",
        ),
        (
            lambda: testing.check_model(model(Model), features()),
            "`tokens` must be integer ids of shape (time,), got float32 of shape (7, 3).",
        ),
        (
            lambda: testing.check_operator(Sum(), "text"),
            "`inputs` must be a pytree of arrays with a leading axis (time), got 'text'.",
        ),
        (lambda: check(Smooth(), tolerance=0.0), "`tolerance` must be a number above 0, got 0.0."),
        (lambda: check(Smooth(), tolerance="1"), "`tolerance` must be a number above 0, got '1'."),
        (lambda: check(Smooth(), gradient=float("nan")), "`gradient` must be a number above 0, got nan."),
    ],
)
def test_inputs_of_another_form(run, says):
    with pytest.raises(ValueError) as caught:
        run()
    assert str(caught.value) == says


def test_equal_tokens_show_nothing():
    """A mean over equal tokens is no leak to be seen."""
    with pytest.raises(ValueError) as caught:
        testing.check_mixer(Mean(), np.ones((TIME, WIDTH), np.float32))
    assert str(caught.value) == "the tokens of `inputs` must differ: equal tokens hide a dependence on later tokens."


# Comparisons.


def said(compare, got, expected, *bound) -> str:
    (finding,) = compare("law", "array", np.asarray(got), np.asarray(expected), *bound)
    return "" if finding.holds else str(finding)


@pytest.mark.parametrize(
    "got, expected, says",
    [
        ([0.0, 1.0], [-0.0, 1.0], ""),
        ([np.nan, 1.0], [np.nan, 1.0], ""),
        ([np.nan, 1.0], [np.nan, 2.0], "law: array first at [1], got 1 and not 2"),
        (
            [1.0, 2.0],
            [1.0, 4.0],
            "law: array first at [1], got 2 and not 4, relative error #, must be equal bit for bit",
        ),
        ([1.0], [1.0, 2.0], "law: array has shape (1,) and not (2,)"),
    ],
    ids=["the sign of a zero", "the same nan", "beside a nan", "unequal", "another shape"],
)
def test_bit_for_bit(got, expected, says):
    assert matches(says, said(identical, got, expected))


@pytest.mark.parametrize(
    "got, expected, says",
    [
        ([3.0, 4.001], [3.0, 4.0], ""),
        ([3.0, 4.1], [3.0, 4.0], "law: array first at [1], got 4.1 and not 4, relative error 2.00e-02, at most 0.001"),
        ([0.0, 1.0], [0.0, 0.0], "law: array first at [1], got 1 and not 0, at most 0.001"),
        ([1.0, np.nan], [1.0, 2.0], "law: array first at [1], got nan and not 2"),
        ([1.0, np.nan], [1.0, np.nan], "law: array first at [1], got nan both times"),
    ],
    ids=["close", "not close", "not zero", "not a number", "neither a number"],
)
def test_close(got, expected, says):
    assert said(close, got, expected, 1e-3) == says
