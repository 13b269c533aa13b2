"""Reading of checkpoints' configuration files by tables of keys."""

from collections.abc import Mapping
from typing import Any

from .._keys import Key, fields_of
from .._kinds import Problems
from ._errors import CheckpointError


def read_keys(content: Mapping[str, Any], table: Mapping[str, Key]) -> dict[str, Any]:
    """The fields that a configuration file sets.

    **Arguments:**

    - `content`: the file.
    - `table`: every known key; `unknown_keys` returns the other keys.

    **Returns:** values by field name, defaults filled in.

    **Raises:** `CheckpointError` listing every key that is missing or has an unsupported value.
    """
    try:
        return fields_of(content, table)
    except Problems as problems:
        raise CheckpointError("The configuration describes a model that cannot be built.", problems.lines) from None
