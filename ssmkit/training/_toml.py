"""Reading of untrusted TOML files, and writing of files that are read back exactly."""

import json
import os
import tomllib
from collections.abc import Mapping
from typing import Any

from .._reading import read_regular


_MOST_BYTES = 1 << 20


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the tables of a file.

    **Raises:** `ValueError` naming the file when it is not TOML; `OSError` when it cannot be read.
    """
    try:
        return tomllib.loads(read_regular(path, _MOST_BYTES).decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # its syntax, its encoding, or a number of thousands of digits
        raise ValueError(f"{path} is not valid TOML: {error}") from None


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of a file with these tables. Keys with the value `None`, which TOML does not have, are left out.

    **Raises:** `ValueError` for a value that TOML cannot express.
    """
    blocks = []
    for name, table in tables.items():
        lines = [f"{_key(key)} = {_value(value)}" for key, value in table.items() if value is not None]
        blocks.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value + 0)  # a number of NumPy's or of an enumeration is printed as a plain one
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_value(item)}' for key, item in value.items())} }}"
    raise ValueError(f"TOML cannot express {value!r}, of type {type(value).__name__}.")
