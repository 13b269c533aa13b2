"""Kinds of values that a key of a configuration file may have.

A kind is a function of the value. It returns the parsed value, or raises `ValueError` with the expected value. Lists,
objects and optional values are kinds that are composed of kinds.
"""

import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ._shown import one_line, shown


Kind: TypeAlias = Callable[[Any], Any]


class Problems(ValueError):
    """The wrong parts of a value. A composed kind raises it, so that one message lists all of them."""

    def __init__(self, parts: Iterable[tuple[str, str]]):
        """**Arguments:** `parts`: for each wrong part its place, such as `.layers[2].width`, and a description."""
        self.parts = tuple(parts)
        super().__init__("; ".join(self.lines))

    @property
    def lines(self) -> list[str]:
        """One line for every wrong part."""
        return [f"`{one_line(place.removeprefix('.'))}` {said}" for place, said in self.parts]


def checked(values: Iterable[tuple[str, Any, Kind]]) -> list[Any]:
    """Check each value by its kind.

    **Arguments:**

    - `values`: triples of a value's place, as in `Problems`, the value, and its kind.

    **Returns:** the results of the kinds.

    **Raises:** `Problems` with all wrong parts.
    """
    found, wrong = [], []
    for place, value, kind in values:
        try:
            found.append(kind(value))
        except Problems as problems:
            wrong += [(place + inner, said) for inner, said in problems.parts]
        except ValueError as expected:
            wrong.append((place, f"must be {expected}, got {shown(value)}"))
    if wrong:
        raise Problems(wrong)
    return found


def anything(value: Any) -> Any:
    """A kind: any value."""
    return value


def boolean(value: Any) -> bool:
    """A kind: true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    """A kind: a string."""
    if not isinstance(value, str):
        raise ValueError("a string")
    return value


def integer(least: int | None = None, most: int = 2**63 - 1) -> Kind:
    """A kind: an integer of at most 64 bits.

    **Arguments:**

    - `least`, `most`: the ends of the range, both included.

    **Returns:** the kind.
    """
    expected = "an integer" if least is None else f"an integer, at least {least}"

    def parse_integer(value: Any) -> int:
        """As `integer`."""
        if type(value) is not int or value < (-(2**63) if least is None else least):
            raise ValueError(expected)
        if value > most:
            raise ValueError(f"an integer, at most {most}")
        return value

    return parse_integer


whole = integer(0)
positive = integer(1)


def real(holds: Callable[[float], bool], expected: str) -> Kind:
    """A kind: a number, which may be infinite.

    **Arguments:**

    - `holds`: the condition on the number; it must be false for NaN.
    - `expected`: the same condition in words, such as `"a number above 0"`.

    **Returns:** the kind, which gives a float.
    """

    def parse_real(value: Any) -> float:
        """As `real`."""
        if not _is_number(value) or not holds(value):
            raise ValueError(expected)
        return float(value)

    return parse_real


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold, infinity and NaN included; booleans do not count."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return not sys.float_info.max < abs(value) < math.inf


number = real(lambda value: value >= 0, "a number of at least 0")


def factor(value: Any) -> int | float:
    """A kind: a finite number above 0. Whole numbers become integers."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError("a number above 0")
    return int(value) if value == int(value) else value


def pair(value: Any) -> tuple[float, float]:
    """A kind: two numbers of at least 0. The first is finite and at most as large as the second."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or not all(map(_is_number, numbers)) or not 0 <= numbers[0] <= numbers[1]:
        raise ValueError("an increasing pair of numbers, at least 0")
    if numbers[0] == math.inf:
        raise ValueError("an increasing pair of numbers, the first finite")
    return float(numbers[0]), float(numbers[1])


def token_ids(value: Any) -> int | tuple[int, ...] | None:
    """A kind: the id of a token, a list of ids, or no id (null or a negative number)."""
    items = value if isinstance(value, list | tuple) else [value]
    if not all(item is None or type(item) is int and item < 2**63 for item in items):
        raise ValueError("the id of a token, a list of ids, or null")
    ids = tuple(item for item in items if item is not None and item >= 0)
    return (ids or None) if isinstance(value, list | tuple) else next(iter(ids), None)


def optional(kind: Kind) -> Kind:
    """A kind: null, or what `kind` accepts."""

    def parse_optional(value: Any) -> Any:
        """As `optional`."""
        return None if value is None else kind(value)

    return parse_optional


def either(*kinds: Kind) -> Kind:
    """A kind: the result of the first kind that accepts the value."""

    def parse_either(value: Any) -> Any:
        """As `either`."""
        expected = []
        for kind in kinds:
            try:
                return kind(value)
            except ValueError as error:
                expected.append(f"a list ({error})" if isinstance(error, Problems) else str(error))
        raise ValueError(" or ".join(expected))

    return parse_either


def only(*accepted: Any) -> Kind:
    """A kind: one of the values that the model can honour."""

    def parse_only(value: Any) -> Any:
        """As `only`."""
        if not any(type(value) is type(item) and value == item for item in accepted):
            raise ValueError(f"{' or '.join(map(repr, accepted))} (nothing else is supported)")
        return value

    return parse_only


def without(reason: str, *neutral: Any) -> Kind:
    """A kind: only values without effect, for a key that changes results and is not supported.

    **Arguments:**

    - `reason`: why the key is not supported, for the message.
    - `neutral`: values without effect, besides null, false and empty values.

    **Returns:** the kind.
    """

    def parse_without(value: Any) -> None:
        """As `without`."""
        empty = value is None or value is False or (isinstance(value, str | list | dict) and not value)
        if not empty and (value is True or value not in neutral):
            accepted = " or ".join(map(repr, neutral)) or "left out"
            raise ValueError(f"{accepted} ({reason})")

    return parse_without


def items(kind: Kind, count: int | None = None) -> Kind:
    """A kind: a list.

    **Arguments:**

    - `kind`: the kind of every entry.
    - `count`: the number of entries; `None` for any number.

    **Returns:** the kind, which gives a tuple.
    """

    def parse_items(value: Any) -> tuple[Any, ...]:
        """As `items`."""
        if not isinstance(value, list | tuple) or count not in (None, len(value)):
            raise ValueError("a list" if count is None else f"a list of {count} values")
        return tuple(checked((f"[{index}]", entry, kind) for index, entry in enumerate(value)))

    return parse_items


def mapping(kind: Kind) -> Kind:
    """A kind: an object with any names.

    **Arguments:**

    - `kind`: the kind of every value.

    **Returns:** the kind, which gives a dictionary.
    """

    def parse_mapping(value: Any) -> dict[str, Any]:
        """As `mapping`."""
        if not isinstance(value, Mapping):
            raise ValueError("a table of keys and values")
        return dict(zip(value, checked((f".{name}", entry, kind) for name, entry in value.items()), strict=True))

    return parse_mapping


_PLAIN: dict[Any, Kind] = {
    bool: boolean,
    str: text,
    int: integer(),
    float: real(lambda value: value == value, "a number"),
}


def annotated(annotation: Any) -> Kind:
    """The kind that corresponds to a parameter's annotation.

    **Arguments:**

    - `annotation`: composed of `int`, `float`, `bool`, `str`, tuples, sequences, and unions with `|`.

    **Returns:** the kind; it accepts anything for other annotations.
    """
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = [annotated(member) for member in members if member is not types.NoneType]
        kind = kinds[0] if len(kinds) == 1 else either(*kinds)
        return optional(kind) if types.NoneType in members else kind
    if origin in (Sequence, list, tuple):
        counted = origin is tuple and Ellipsis not in members
        return items(annotated(members[0]), len(members) if counted else None)
    return anything
