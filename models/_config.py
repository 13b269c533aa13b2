"""Configurations whose fields are checked by their types, all at once."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ssmkit.checkpoint import (
    Kind,
    Problems,
    boolean,
    checked,
    either,
    factor,
    integer,
    items,
    optional,
    pair,
    real,
    text,
    whole,
)


FOLLOWS: Any = None  # the default of a size that follows from others where it is left out

size = integer(1, 2**31 - 1)
finite = real(lambda value: abs(value) < math.inf, "a finite number")
above_0 = real(lambda value: 0 < value < math.inf, "a finite number above 0")


def or_none(kind: Kind) -> Kind:
    """As `optional`, for a Python value."""

    def parse_or_none(value: Any) -> Any:
        """As `or_none`."""
        try:
            return optional(kind)(value)
        except ValueError as expected:
            raise ValueError(f"{expected}, or None") from None

    return parse_or_none


def size_or_auto(value: Any) -> int | None:
    """A kind: a size, or `"auto"` for one that follows from others."""
    if value == "auto":
        return None
    try:
        return size(value)
    except ValueError as expected:
        raise ValueError(f'{expected}, or "auto"') from None


def _ids(value: Any) -> int | tuple[int, ...] | None:
    """A kind: ids of special tokens."""
    try:
        return optional(either(whole, items(whole)))(value)
    except ValueError:
        raise ValueError("an id, a tuple of ids, or None") from None


_BY_TYPE: dict[Any, Kind] = {
    int: size,
    bool: boolean,
    str: text,
    float: finite,
    int | float: factor,
    int | None: or_none(size),
    float | None: or_none(factor),
    tuple[float, float]: pair,
    tuple[float, ...]: items(finite),
    tuple[str, ...]: items(text),
    int | Sequence[int] | None: _ids,
    int | tuple[int, ...] | None: _ids,
}


class AbstractCheckedConfig(abc.ABC):
    """A frozen dataclass whose fields are checked when it is made.

    **Raises:** `ValueError` listing every field that does not fit, by itself or with others.
    """

    __no_type_check__ = True  # kinds look at the types too, and all that is wrong is listed

    def __post_init__(self):
        kinds, fields = kinds_of(type(self)), dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        given = {field.name: getattr(self, field.name) for field in fields}
        own = {field.name for field in fields if given[field.name] is field.default is None}
        try:
            values = checked((f".{name}", value, kinds[name]) for name, value in given.items() if name not in own)
        except Problems as problems:
            raise ValueError(f"{type(self).__name__}: {problems}.") from None
        for name, value in zip((name for name in given if name not in own), values, strict=True):
            object.__setattr__(self, name, value)
        for name, implied in self.implied().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, implied)
        if contradictions := self.contradictions():
            raise ValueError(f"{type(self).__name__}: {'; '.join(contradictions)}.")

    @classmethod
    @abc.abstractmethod
    def kinds(cls) -> dict[str, Kind]:
        """The kinds of fields whose types do not say enough."""

    @abc.abstractmethod
    def implied(self) -> dict[str, Any]:
        """The values of fields that were left out. Each of the other fields is valid by itself."""

    @abc.abstractmethod
    def contradictions(self) -> list[str]:
        """The contradictions between fields, one line each. Every value is known."""


def kinds_of(config: type[AbstractCheckedConfig]) -> dict[str, Kind]:
    """The kind of every field of a class of configurations."""
    given = config.kinds()
    fields = dataclasses.fields(config)  # pyright: ignore[reportArgumentType]
    return {field.name: given.get(field.name) or _BY_TYPE[field.type] for field in fields}
