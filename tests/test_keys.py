"""The one validator of configuration files: kinds of values, and tables of keys."""

import dataclasses
from collections.abc import Sequence

import pytest

from ssmkit._keys import OWN, Key, fields_of, keys_of, record
from ssmkit._kinds import Problems, annotated, anything, integer, items, mapping, optional, positive, real, text


LAYER = record({"name": Key(text, "name"), "width": Key(positive, "width", 4)})
TABLE = {
    "layers": Key(items(LAYER), "layers"),
    "vocab": Key(integer(2, 100), "vocab_size"),
    "rate": Key(real(lambda value: 0 < value < 1, "a number in (0, 1)"), "rate", 0.5),
    "names": Key(optional(mapping(text)), "names", None),
    "seed": Key(positive, "seed", OWN),
}


def test_fields():
    fields = fields_of({"layers": [{"name": "a"}, {"name": "b", "width": 2}], "vocab": 7, "other": 1}, TABLE)
    layers = ({"name": "a", "width": 4}, {"name": "b", "width": 2})
    assert fields == {"layers": layers, "vocab_size": 7, "rate": 0.5, "names": None}


def test_every_problem_is_told_with_its_place():
    """Whatever the depth, with what was got and what was expected, in one error."""
    content = {
        "layers": [{"name": 3}, {"width": 0, "wdth": 2}, "x"],
        "rate": 1,
        "names": {"a": "fine", "b\n": None},
        "surplus": 1,
    }
    with pytest.raises(Problems) as caught:
        record(TABLE)(content)
    assert caught.value.lines == [
        "`surplus` is unknown (known: layers, vocab, rate, names, seed)",
        "`vocab` is missing",
        "`layers[0].name` must be a string, got 3",
        "`layers[1].wdth` is unknown (known: name, width)",
        "`layers[1].name` is missing",
        "`layers[1].width` must be an integer, at least 1, got 0",
        "`layers[2]` must be a table of keys and values, got 'x'",
        "`rate` must be a number in (0, 1), got 1",
        r"`names.b\n` must be a string, got None",
    ]
    assert str(caught.value) == "; ".join(caught.value.lines)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 2**63, 0])
def test_integers(value):
    expected = "an integer, at most 9223372036854775807" if value == 2**63 else "an integer, at least 1"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        positive(value)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), -(10**400), 10**400])
def test_numbers(value):
    with pytest.raises(ValueError, match="^a number$"):
        annotated(float)(value)
    assert annotated(float)(3) == 3.0 and type(annotated(float)(3)) is float


@pytest.mark.parametrize(
    "annotation, good, given, bad, expected",
    [
        (int, -3, -3, 1.0, "^an integer$"),
        (bool, True, True, 1, "true or false"),
        (str | None, None, None, 3, "a string"),
        (tuple[float, float], [1, 2], (1.0, 2.0), [1], "a list of 2 values"),
        (Sequence[int], [1, 2], (1, 2), 1, "a list"),
        (int | Sequence[int] | None, [1], (1,), "x", "^an integer or a list$"),
    ],
)
def test_annotations(annotation, good, given, bad, expected):
    kind = annotated(annotation)
    assert kind(good) == given and type(kind(good)) is type(given)
    with pytest.raises(ValueError, match=expected):
        kind(bad)


def test_an_entry_of_a_list_that_may_be_one_value():
    with pytest.raises(ValueError, match=r"^an integer or a list \(`\[1\]` must be an integer, got 'x'\)$"):
        annotated(int | Sequence[int])([1, "x"])


def test_keys_of_what_is_built():
    """A parameter without a default is required; the others are left to the class."""

    @dataclasses.dataclass
    class Config:
        width: int
        shape: tuple[int, ...] = (1,)
        other: object = None

    table = keys_of(Config, without=("other",))
    assert record(table, Config)({"width": 3, "shape": [2, 4]}) == Config(3, (2, 4))
    assert record(table, Config)({"width": 3}) == Config(3)
    with pytest.raises(Problems, match="^`other` is unknown .*; `width` is missing; `shape` must be a list, got 3$"):
        record(table, Config)({"shape": 3, "other": 1})
    assert keys_of(Config)["other"].parse is anything
