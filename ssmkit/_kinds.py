"""Kinds of values that a key of a configuration file may have.

A kind is a function of the value: it gives the value that is meant, or raises `ValueError` saying what was expected.
Kinds are made of kinds: lists, objects, what may be left out.
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
    """Parts of a value that are wrong. A kind that is made of others raises it, so that all are told at once."""

    def __init__(self, parts: Iterable[tuple[str, str]]):
        """**Arguments:** `parts`: the place of each in the value, such as `.layers[2].width`, and what is wrong."""
        self.parts = tuple(parts)
        super().__init__("; ".join(self.lines))

    @property
    def lines(self) -> list[str]:
        """One line for every part."""
        return [f"`{one_line(place.removeprefix('.'))}` {said}" for place, said in self.parts]


def checked(values: Iterable[tuple[str, Any, Kind]]) -> list[Any]:
    """Values, each checked by its kind.

    **Arguments:**

    - `values`: the place of each in the whole, as in `Problems`, the value, and the kind.

    **Returns:** what the kinds give.

    **Raises:** `Problems` with all that is wrong.
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
    """A kind: whatever stands there."""
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

    - `least`, `most`: the ends of the range, both in it.

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

    - `holds`: what must be true of it; of NaN it must be false.
    - `expected`: the same in words, such as `"a number above 0"`.

    **Returns:** the kind, which gives a float.
    """

    def parse_real(value: Any) -> float:
        """As `real`."""
        if not _is_number(value) or not holds(value):
            raise ValueError(expected)
        return float(value)

    return parse_real


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold, or infinite, or not a number; true and false are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return not sys.float_info.max < abs(value) < math.inf


number = real(lambda value: value >= 0, "a number of at least 0")


def factor(value: Any) -> int | float:
    """A kind: a finite number above 0; an integer where it is one."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError("a number above 0")
    return int(value) if value == int(value) else value


def pair(value: Any) -> tuple[float, float]:
    """A kind: two numbers of at least 0, the first not larger and finite."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or not all(map(_is_number, numbers)) or not 0 <= numbers[0] <= numbers[1]:
        raise ValueError("an increasing pair of numbers, at least 0")
    if numbers[0] == math.inf:
        raise ValueError("an increasing pair of numbers, the first finite")
    return float(numbers[0]), float(numbers[1])


def token_ids(value: Any) -> int | tuple[int, ...] | None:
    """A kind: the id of a token, a list of ids, or none, which is written as null or as a negative number."""
    items = value if isinstance(value, list) else [value]
    if not all(item is None or type(item) is int and item < 2**63 for item in items):
        raise ValueError("the id of a token, a list of ids, or null")
    ids = tuple(item for item in items if item is not None and item >= 0)
    return (ids or None) if isinstance(value, list) else next(iter(ids), None)


def optional(kind: Kind) -> Kind:
    """A kind: null, or what `kind` accepts."""

    def parse_optional(value: Any) -> Any:
        """As `optional`."""
        return None if value is None else kind(value)

    return parse_optional


def either(*kinds: Kind) -> Kind:
    """A kind: what the first gives of the kinds that accept the value."""

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
    """The kind of a key that changes results and that the model cannot honour: nothing may be asked for.

    **Arguments:**

    - `reason`: why not, for the message.
    - `neutral`: values that ask for nothing, besides null, false and what is empty.

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

    - `kind`: of every entry.
    - `count`: how many there must be; `None` for any number.

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

    - `kind`: of every value.

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
    """The kind that a parameter's annotation stands for.

    **Arguments:**

    - `annotation`: made of `int`, `float`, `bool`, `str`, tuples, sequences, and unions with `|`.

    **Returns:** the kind, which accepts anything where the annotation is another.
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
