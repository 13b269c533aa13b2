"""What each accelerator reaches, over all geometries: one table per device and version of JAX."""

from collections.abc import Iterable, Iterator
from typing import Any

from ._geometry import GEOMETRIES


# Of decoding and of prompts: the size of a row, the name of its column, and the share of the published peak.
_KINDS = {
    "decode": ("batch", "decoding, {:,}", "hbu_of_data_sheet"),
    "prefill": ("length", "prompt of {:,}", "mfu_of_data_sheet"),
}


def summaries(contents: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A section for each accelerator that decoded or consumed prompts.

    A cell has the tokens per second and, in brackets, the share of the published peak: of the memory's bandwidth for
    decoding (HBU), of bfloat16 products for prompts (MFU).
    """
    devices: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for content in contents:
        if content["command"] in _KINDS and content["device"]["platform"] != "cpu":
            devices.setdefault((content["device"]["kind"], content["environment"]["jax"]), []).append(content)
    for (kind, version), found in devices.items():
        yield "\n".join([f"### {kind}, jax {version}", "", _peaks(found), "", *_table(found), ""])


def _peaks(contents: list[dict[str, Any]]) -> str:
    best: dict[str, float] = {}
    for content in contents:
        for found in content["ceilings"].values():
            best |= found
    text = "Tokens per second"
    if "sheet_matvec" in best:
        text += (
            f", and the share of the published {best['sheet_matvec'] / 1e9:,.0f} GB/s (decoding) and "
            f"{best['sheet_matmul'] / 1e12:,.0f} TFLOP/s (prompts)"
        )
    return f"{text}. arXiv 2603.09555 states up to 64% and 15% on a TPU v6e."


def _table(contents: list[dict[str, Any]]) -> Iterator[str]:
    cells: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    columns: set[tuple[str, int]] = set()
    for content in contents:
        size, _, share = _KINDS[content["command"]]
        for row in content["rows"]:
            column = content["command"], row[size]
            columns.add(column)
            reached = "" if row.get(share) is None else f" ({row[share]:.0%})"
            cells.setdefault((content["geometry"], row["label"]), {})[column] = f"{row['tokens_per_s']:,.0f}{reached}"
    ordered = sorted(columns)
    titles = [_KINDS[command][1].format(size) for command, size in ordered]
    yield "| " + " | ".join(["geometry", "", *titles]) + " |"
    yield "|---|---|" + "--:|" * len(ordered)
    order = list(GEOMETRIES)
    for geometry, label in sorted(cells, key=lambda key: order.index(key[0])):
        found = [cells[geometry, label].get(column, "") for column in ordered]
        yield "| " + " | ".join([geometry, label, *found]) + " |"
