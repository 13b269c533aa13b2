"""The rotary positions of a configuration file, in either of HF transformers' spellings."""

from collections.abc import Mapping
from typing import Any

from ssmkit.checkpoint import CheckpointError


def flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with `rope_theta`, `partial_rotary_factor` and `rope_scaling` in place of `rope_parameters`.

    Version 5 of HF transformers writes one table, `rope_parameters`. Older files have the three keys beside the others.
    `rope_scaling` is left out where it changes nothing.
    """
    content = dict(content)
    table = content.pop("rope_parameters", None) or content.pop("rope_scaling", None) or {}
    if not isinstance(table, Mapping):
        raise CheckpointError("`rope_parameters` and `rope_scaling` must be tables of keys and values.")
    table = dict(table)
    for name in ("rope_theta", "partial_rotary_factor"):
        if table.get(name) is not None:
            content[name] = table[name]
        table.pop(name, None)
    table["rope_type"] = table.get("rope_type") or table.pop("type", None) or "default"
    table.pop("type", None)
    content.pop("rope_scaling", None)
    if table != {"rope_type": "default"}:
        content["rope_scaling"] = table
    return content


def table(config: Any) -> dict[str, Any]:
    """The value of `rope_parameters` for a configuration with `rope_theta` and `partial_rotary_factor`."""
    keys = ("rope_theta", "partial_rotary_factor")
    return {"rope_type": "default", **{name: getattr(config, name) for name in keys}}
