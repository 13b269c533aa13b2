"""Whether the values of a table are of the types that a dataclass gives its fields."""

import types
import typing
from collections.abc import Sequence
from typing import Any


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def accepts(kind: Any, value: Any) -> bool:
    """Whether a value from a file can be that of a field annotated `kind`; a list can be a tuple."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(member, value) for member in arguments)
    if origin is tuple and Ellipsis not in arguments:
        fits = isinstance(value, list | tuple) and len(value) == len(arguments)
        return fits and all(map(accepts, arguments, value))
    if origin in (Sequence, list, tuple):
        return isinstance(value, list | tuple) and all(accepts(arguments[0], item) for item in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind if kind in _WORDS else True


def words(kind: Any) -> str:
    """What a field annotated `kind` accepts, for people."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(member) for member in arguments if member is not types.NoneType)
    if origin in (Sequence, list, tuple):
        length = f"{len(arguments)} values" if origin is tuple and Ellipsis not in arguments else "values"
        return f"a list of {length}, each {words(arguments[0])}"
    return _WORDS.get(kind, str(kind))


def shortened(value: Any) -> str:
    """A value as messages show it."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:100]}..."
