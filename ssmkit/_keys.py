"""Configuration files as tables: what each key may hold, and which field of a configuration it sets."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ._kinds import Kind, Problems, annotated, checked


class _Default:
    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return self.name


REQUIRED: Any = _Default("REQUIRED")
"""The default of a required `Key`."""
OWN: Any = _Default("OWN")
"""The default of a `Key` that sets nothing when it is left out, because the configuration has its own default."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration file."""

    parse: Kind
    """The kind of the value: it returns the parsed value, or raises `ValueError` with the expected value."""
    field: str | None = None
    """The field of the model's configuration that the key sets; `None` when it is only checked."""
    default: Any = REQUIRED
    """The value of the field if the key is left out."""


def unknown_keys(content: Mapping[str, Any], table: Mapping[str, Key], dead: Collection[str] = ()) -> dict[str, Any]:
    """The unknown keys of a configuration file.

    **Arguments:**

    - `content`, `table`: as for `read_keys`.
    - `dead`: keys that never change the model, whatever their value.

    **Returns:** their values by name, sorted.
    """
    return {name: content[name] for name in sorted(content.keys() - table.keys() - set(dead))}


def fields_of(content: Mapping[str, Any], table: Mapping[str, Key]) -> dict[str, Any]:
    """The fields that a table of a file sets.

    **Arguments:**

    - `content`: the table.
    - `table`: every known key; `unknown_keys` returns the other keys.

    **Returns:** values by field name, defaults filled in.

    **Raises:** `Problems` with every key that is missing or has an unsupported value.
    """
    absent = table.keys() - content.keys()
    missing = [(f".{name}", "is missing") for name in table if name in absent and table[name].default is REQUIRED]
    left_out = {name for name in absent if isinstance(table[name].default, _Default)}
    present = {name: key for name, key in table.items() if name not in left_out}
    found: list[Any] = []
    try:
        found = checked((f".{name}", content.get(name, key.default), key.parse) for name, key in present.items())
    except Problems as problems:
        raise Problems([*missing, *problems.parts]) from None
    if missing:
        raise Problems(missing)
    return {key.field: value for key, value in zip(present.values(), found, strict=True) if key.field is not None}


def record(table: Mapping[str, Key], build: Callable[..., Any] = dict) -> Kind:
    """A kind: an object with the keys of a table, and no others.

    **Arguments:**

    - `table`: what each key may hold.
    - `build`: a function of the fields, given by name.

    **Returns:** the kind.
    """

    def parse_record(value: Any) -> Any:
        """As `record`."""
        if not isinstance(value, Mapping):
            raise ValueError("a table of keys and values")
        known = ", ".join(table)
        wrong = [(f".{name}", f"is unknown (known: {known})") for name in unknown_keys(value, table)]
        try:
            fields = fields_of(value, table)
        except Problems as problems:
            raise Problems([*wrong, *problems.parts]) from None
        if wrong:
            raise Problems(wrong)
        return build(**fields)

    return parse_record


def keys_of(build: Callable[..., Any], *, without: Collection[str] = ()) -> dict[str, Key]:
    """The table of a class or function: one key for each of its parameters.

    **Arguments:**

    - `build`: a dataclass, or anything with annotations that `annotated` reads.
    - `without`: parameters that are not keys.

    **Returns:** the table. `build` itself supplies defaults and checks ranges.
    """
    return {
        name: Key(annotated(each.annotation), name, REQUIRED if each.default is each.empty else OWN)
        for name, each in inspect.signature(build).parameters.items()
        if name not in without
    }


def write_keys(config: Any, table: Mapping[str, Key]) -> dict[str, Any]:
    """Write the configuration file that `read_keys` turns back into the fields of `config`.

    **Arguments:**

    - `config`: a dataclass.
    - `table`: as for `read_keys`.

    **Returns:** the value of every key of the table that sets a field.
    """
    return {name: getattr(config, key.field) for name, key in table.items() if key.field is not None}
