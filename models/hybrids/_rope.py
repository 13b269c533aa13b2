"""The rotary positions of a configuration file, in either of HF transformers' spellings."""

from collections.abc import Mapping
from typing import Any

from ssmkit.checkpoint import CheckpointError, frozen


_LENGTH = "original_max_position_embeddings"


def scaling(value: Any) -> Mapping[str, Any] | None:
    """A kind: `None`, or a table of numbers and of a `rope_type`. `ssmkit.Attention` knows which types there are."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(each, str | int | float) for each in value.values()):
        raise ValueError("a table of numbers and of a `rope_type`")
    return frozen(value)


def flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with `rope_theta`, `partial_rotary_factor` and `rope_scaling` in place of `rope_parameters`.

    Version 5 of HF transformers writes one table, `rope_parameters`. Older files have the three keys beside the others.
    Where both tables are there, `rope_scaling` counts, as for HF. It is left out where it changes nothing. Types that
    need the length of the trained positions take it from beside the table, or else the model's own.
    """
    content = dict(content)
    parameters, scaled = content.pop("rope_parameters", None), content.pop("rope_scaling", None)
    table = scaled or parameters or {}
    if not isinstance(table, Mapping):
        raise CheckpointError("`rope_parameters` and `rope_scaling` must be tables of keys and values.")
    table = {name: value for name, value in table.items() if value is not None}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in table:
            content[name] = table.pop(name)
    kind = table.pop("type", "default")
    kind = table["rope_type"] = table.get("rope_type", kind)
    length = content.pop(_LENGTH, None)
    if kind in ("llama3", "yarn"):
        table |= {} if length is None else {_LENGTH: length}
        if content.get("max_position_embeddings") is not None:
            table.setdefault(_LENGTH, content["max_position_embeddings"])
    if table != {"rope_type": "default"}:
        content["rope_scaling"] = table
    return content


def table(config: Any) -> dict[str, Any]:
    """The value of `rope_parameters` for a configuration with the three keys."""
    keys = ("rope_theta", "partial_rotary_factor")
    return {"rope_type": "default", **{name: getattr(config, name) for name in keys}, **(config.rope_scaling or {})}
