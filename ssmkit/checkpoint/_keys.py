"""Configuration files as a table: what each key may hold, and which field of the model's configuration it sets."""

import dataclasses
import math
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ._errors import CheckpointError, shown


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()
"""The default of a `Key` that has none."""


def boolean(value: Any) -> bool:
    """A `Key.parse`: true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def whole(value: Any) -> int:
    """A `Key.parse`: an integer of at least 0."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("an integer of at least 0")
    return value


def positive(value: Any) -> int:
    """A `Key.parse`: an integer of at least 1."""
    if type(value) is not int or not 1 <= value < 2**63:
        raise ValueError("an integer of at least 1")
    return value


def number(value: Any) -> float:
    """A `Key.parse`: a number of at least 0, or infinity."""
    if type(value) not in (int, float) or not value >= 0 or sys.float_info.max < value < math.inf:
        raise ValueError("a number of at least 0")
    return float(value)


def factor(value: Any) -> int | float:
    """A `Key.parse`: a finite number above 0; an integer where it is one."""
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise ValueError("a number above 0")
    return int(value) if value == int(value) else value


def pair(value: Any) -> tuple[float, float]:
    """A `Key.parse`: two numbers, the first not larger."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("two numbers")
    low, high = (number(item) for item in value)
    if low > high:
        raise ValueError("two numbers, the first not larger")
    return low, high


def token_ids(value: Any) -> int | tuple[int, ...] | None:
    """A `Key.parse`: the id of a token, a list of ids, or none, which is written as null or as a negative number."""
    items = value if isinstance(value, list) else [value]
    if not all(item is None or type(item) is int and item < 2**63 for item in items):
        raise ValueError("the id of a token, a list of ids, or null")
    ids = tuple(item for item in items if item is not None and item >= 0)
    return (ids or None) if isinstance(value, list) else next(iter(ids), None)


def optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A `Key.parse`: null, or what `parse` accepts."""

    def parse_optional(value: Any) -> Any:
        """As `optional`."""
        return None if value is None else parse(value)

    return parse_optional


def only(*accepted: Any) -> Callable[[Any], Any]:
    """A `Key.parse`: one of the values that the model can honour."""

    def parse_only(value: Any) -> Any:
        """As `only`."""
        if not any(type(value) is type(item) and value == item for item in accepted):
            raise ValueError(f"{' or '.join(map(repr, accepted))}: nothing else is supported")
        return value

    return parse_only


def without(reason: str, *neutral: Any) -> Callable[[Any], None]:
    """A `Key.parse` of a key that changes results and that the model cannot honour: nothing may be asked for.

    **Arguments:**

    - `reason`: why not, for the message.
    - `neutral`: values that ask for nothing, besides null, false and what is empty.

    **Returns:** the parser.
    """

    def parse_without(value: Any) -> None:
        """As `without`."""
        empty = value is None or value is False or (isinstance(value, str | list | dict) and not value)
        if not empty and (value is True or value not in neutral):
            accepted = " or ".join(map(repr, neutral)) or "nothing"
            raise ValueError(f"{accepted}: {reason}")

    return parse_without


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration file."""

    parse: Callable[[Any], Any]
    """The value, checked; raises `ValueError` saying what was expected."""
    field: str | None = None
    """The field of the model's configuration that the key sets; `None` when it is only checked."""
    default: Any = REQUIRED
    """What the format means by leaving the key out."""


def unknown_keys(content: Mapping[str, Any], table: Mapping[str, Key], dead: Collection[str] = ()) -> dict[str, Any]:
    """The keys of a configuration file that nobody here has heard of.

    **Arguments:**

    - `content`, `table`: as for `read_keys`.
    - `dead`: keys that are known to change nothing in the model, whatever their value.

    **Returns:** their values by name, sorted.
    """
    return {name: content[name] for name in sorted(content.keys() - table.keys() - set(dead))}


def read_keys(content: Mapping[str, Any], table: Mapping[str, Key]) -> dict[str, Any]:
    """The fields that a configuration file sets.

    **Arguments:**

    - `content`: the file.
    - `table`: every key that is understood; the others are those of `unknown_keys`.

    **Returns:** values by field name, defaults filled in.

    **Raises:** `CheckpointError` listing every key that is missing or has a value that cannot be honoured.
    """
    problems: list[str] = []
    fields: dict[str, Any] = {}
    for name, key in table.items():
        value = content.get(name, key.default)
        if value is REQUIRED:
            problems.append(f"`{name}`: missing")
            continue
        try:
            value = key.parse(value)
        except ValueError as error:
            problems.append(f"`{name}`: got {shown(value)}, expected {error}")
            continue
        if key.field is not None:
            fields[key.field] = value
    if problems:
        raise CheckpointError("The configuration describes a model that cannot be built.", problems)
    return fields


def write_keys(config: Any, table: Mapping[str, Key]) -> dict[str, Any]:
    """The configuration file that `read_keys` turns back into the fields of `config`.

    **Arguments:**

    - `config`: a dataclass.
    - `table`: as for `read_keys`.

    **Returns:** the value of every key of the table that sets a field.
    """
    return {name: getattr(config, key.field) for name, key in table.items() if key.field is not None}
