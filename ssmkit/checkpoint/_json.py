"""Reading of JSON files from outside: objects of a bounded size, without huge integers."""

import json
import pathlib
from typing import Any

from .._reading import read_regular
from ._errors import CheckpointError


LARGEST = 4 << 20
"""The largest size, in bytes, of a description: a configuration, an index of shards or the header of a weight file.

The descriptions of published models take some kilobytes. Python's objects take up to thirty times the bytes of their
text.
"""
_DIGITS = 40  # of an integer; 64 bits take 20


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON object. Infinities may be written as `Infinity` or as `{"__float__": "Infinity"}`.

    **Arguments:**

    - `path`: the file.

    **Returns:** the object.

    **Raises:** `CheckpointError` when the file is missing, is not a regular file or is larger than `LARGEST`, or when
    it holds no JSON object, or an integer of more than 40 digits.
    """
    try:
        content = json.loads(
            read_regular(path, LARGEST).decode("utf-8"), object_hook=_tagged_float, parse_int=_bounded_integer
        )
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read as JSON: {error.strerror or error}.") from error
    except (ArithmeticError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"`{path}` cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` must hold a JSON object, got {type(content).__name__}.")
    return content


def _tagged_float(content: dict[str, Any]) -> Any:
    """The float that is written as an object with the single key `__float__`."""
    return float(content["__float__"]) if content.keys() == {"__float__"} else content


def _bounded_integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"an integer of {len(text)} digits, which no configuration needs")
    return int(text)
