"""Reports on result files: a section with a table for each file, and plots."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._report_devices import summaries


BEGIN, END = "<!-- results -->", "<!-- end of results -->"
Row = dict[str, Any]
Column = tuple[str, Callable[[Row, list[Row]], str]]

_ORDER = ("decode", "prefill", "uncached", "context", "startup", "train", "ceilings", "suite", "trace")
_TITLES = {
    "decode": "Decoding",
    "prefill": "Prompts",
    "uncached": "With and without a cache",
    "context": "After many tokens",
    "startup": "Starting",
    "train": "Training step",
    "ceilings": "Limits of the machine",
    "suite": "Tests",
    "trace": "Where the time goes",
}


def _number(key: str, form: str, scale: float = 1.0) -> Callable[[Row, list[Row]], str]:
    return lambda row, rows: format(scale * row[key], form) if key in row else ""


def _share(key: str) -> Callable[[Row, list[Row]], str]:
    return lambda row, rows: "n/a" if row.get(key, 0.0) is None else _number(key, ".0%")(row, rows)


def _text(key: str) -> Callable[[Row, list[Row]], str]:
    return lambda row, rows: str(row[key])


def _times_ours(match: str | None) -> Callable[[Row, list[Row]], str]:
    """The ratio of ssmkit's tokens per second to this subject's, at the same size; ssmkit's first variant counts."""

    def cell(row: Row, rows: list[Row]) -> str:
        same = [
            other
            for other in sorted(rows, key=lambda row: row["subject"] != "ssmkit")
            if other["subject"].startswith("ssmkit") and (not match or other[match] == row[match])
        ]
        return f"{same[0]['tokens_per_s'] / row['tokens_per_s']:.2f}" if same else ""

    return cell


_COLUMNS: dict[str, list[Column]] = {
    "decode": [
        ("batch", _text("batch")),
        ("", _text("label")),
        ("ms per step", _number("ms_per_step", ".2f")),
        ("fastest", _number("fastest_ms_per_step", ".2f")),
        ("tokens/s", _number("tokens_per_s", ",.1f")),
        ("GB/s", _number("gb_per_s", ".1f")),
        ("HBU", _share("hbu")),
        ("HBU, data sheet", _share("hbu_of_data_sheet")),
        ("time, ssmkit = 1", _times_ours("batch")),
    ],
    "prefill": [
        ("tokens", _text("length")),
        ("", _text("label")),
        ("ms", _number("ms", ",.1f")),
        ("fastest", _number("fastest_ms", ",.1f")),
        ("tokens/s", _number("tokens_per_s", ",.0f")),
        ("GFLOP/s", _number("projection_gflops", ",.0f")),
        ("MFU", _number("mfu", ".0%")),
        ("MFU, data sheet", _number("mfu_of_data_sheet", ".0%")),
        ("time, ssmkit = 1", _times_ours("length")),
    ],
    "uncached": [
        ("total", _text("total")),
        ("", _text("label")),
        ("with a cache, s", _number("cached_s", ",.2f")),
        ("without, s", _number("uncached_s", ",.2f")),
        ("ratio", _number("ratio", ".1f")),
    ],
    "context": [
        ("tokens before", _text("context")),
        ("", _text("label")),
        ("ms per token", _number("ms_per_token", ".2f")),
        ("fastest", _number("fastest_ms_per_token", ".2f")),
        ("cache, MB", _number("cache_bytes", ",.1f", 1e-6)),
        ("time added, of reading the bytes added", _number("added_time_of_bytes", ".2f")),
        ("peak memory, MB", _number("peak_bytes", ",.0f", 1e-6)),
    ],
    "startup": [
        ("", _text("what")),
        ("s", _number("s", ".2f")),
        ("peak memory, MB", _number("peak_bytes", ",.0f", 1e-6)),
        ("of the weights", _number("peak_over_weights", ".2f")),
    ],
    "train": [
        ("", _text("label")),
        ("tokens/s", _number("tokens_per_s", ",.0f")),
        ("fastest", _number("fastest_tokens_per_s", ",.0f")),
        ("resident, MB", _number("peak_bytes", ",.0f", 1e-6)),
        ("planned by the compiler, MB", _number("program_bytes", ",.0f", 1e-6)),
        ("time, ssmkit = 1", _times_ours(None)),
    ],
    "ceilings": [("", _text("kind")), ("form", _text("form")), ("s", lambda row, rows: f"{min(row['seconds']):.4f}")],
    "suite": [
        ("", _text("file")),
        ("passed", _text("passed")),
        ("failed", _text("failed")),
        ("skipped", _text("skipped")),
        ("s", _number("seconds", ".1f")),
    ],
    "trace": [
        ("", _text("program")),
        ("kernel", lambda row, rows: f"`{row['kernel'][:60].replace('|', ' ')}`"),
        ("times", _text("count")),
        ("us", lambda row, rows: f"{1e6 * row['seconds'][0]:,.0f}"),
        ("share", _number("share", ".0%")),
    ],
}


def table(command: str, rows: list[Row]) -> str:
    """The table of a result in Markdown. Columns that are empty for all rows are left out."""
    columns = [(title, [cell(row, rows) for row in rows]) for title, cell in _COLUMNS[command]]
    kept = [(title, cells) for title, cells in columns if any(cells)]
    left = {"", "form", "kernel"}
    lines = [
        "| " + " | ".join(title for title, _ in kept) + " |",
        "|" + "|".join("---" if title in left else "--:" for title, _ in kept) + "|",
        *("| " + " | ".join(cells) + " |" for cells in zip(*(cells for _, cells in kept), strict=True)),
    ]
    return "\n".join(lines)


def section(content: dict[str, Any], figure: str | None = None) -> str:
    """The section of a result file: the measurement and its machine, its table, its plot, and omitted subjects."""
    setup, place = content["environment"], content["device"]
    machine = f"{setup['cpu']}, {setup['cores']} cores" if place["platform"] == "cpu" else place["kind"]
    where = "cpu" if place["platform"] == "cpu" else place["kind"]
    title = ": ".join(filter(None, [_TITLES[content["command"]], content.get("geometry")]))
    repeats = None if content["command"] == "trace" else content.get("repeats")
    versions = ", ".join(f"{name} {setup[name]}" for name in _versions(content) if name in setup)
    lines = [
        f"### {title}, {where}, jax {setup['jax']}",
        "",
        f"{machine}; Python {setup['python']}, {versions}." + (f" Medians of {repeats}." if repeats else ""),
        *_notes(content),
        "",
        table(content["command"], content["rows"]),
    ]
    if figure is not None:
        lines += ["", f"![{_TITLES[content['command']]}]({figure})"]
    return "\n".join(lines) + "\n"


def _versions(content: dict[str, Any]) -> list[str]:
    """The versions of the packages that took part."""
    packages = {
        "hf": ["torch", "transformers"],
        "mamba2-jax": ["mamba2-jax", "flax"],
        "llama.cpp": ["llama-cpp-python"],
        "mamba_ssm": ["mamba-ssm", "triton", "torch"],
    }
    subjects = [row.get("subject", "") for row in content["rows"]]
    found = [
        package for name, them in packages.items() if any(s.startswith(name) for s in subjects) for package in them
    ]
    return ["jaxlib", *dict.fromkeys(found)]


def _notes(content: dict[str, Any]) -> list[str]:
    notes = []
    for size, limits in content.get("ceilings", {}).items():
        parts = [f"{_limit(kind, rate)}" for kind, rate in limits.items() if not kind.startswith("sheet")]
        if parts:
            where = "" if size == "all" else f" ({size})"
            notes.append(f"Limits in the same run{where}: {', '.join(parts)}.")
    if "spread" in content:
        worst = ", ".join(f"{name} {value:.1%}" for name, value in content["spread"].items())
        notes.append(f"The slowest context costs more than the median one by: {worst}.")
    if any(row.get("hbu", 0.0) is None for row in content["rows"]):
        notes.append("HBU is n/a where what a step reads fits into the caches: memory does not bound it.")
    if content.get("left"):
        notes.append(f"The measurement ended before: {', '.join(map(str, content['left']))}.")
    notes += [f"`{failure['test']}`: {failure['why'].splitlines()[0]}" for failure in content.get("failures", [])]
    if content.get("skipped"):
        notes.append("Not measured: " + ", ".join(f"{name}, {why}" for name, why in content["skipped"].items()) + ".")
    return notes


def _limit(kind: str, rate: float) -> str:
    unit = "GFLOP/s" if kind.startswith("matmul") else "GB/s"
    return f"{kind.replace('_', ' ')} {rate / 1e9:,.1f} {unit}"


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The result files of a folder by name, in the order of the report. Other files are skipped."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    known = {stem: content for stem, content in found.items() if content.get("command") in _ORDER}
    return dict(sorted(known.items(), key=lambda item: (_ORDER.index(item[1]["command"]), item[0])))


def render(folder: Path, page: Path | None = None, figures: Path | None = None) -> str:
    """All sections.

    **Arguments:**

    - `folder`: the folder of result files.
    - `page`: the page in which the sections replace the text between `BEGIN` and `END`.
    - `figures`: the folder of plots. Sections show them, relative to the page.

    **Raises:** `ValueError` when there are no results, or the page has no marks.
    """
    results = read(folder)
    if not results:
        raise ValueError(f"{folder} holds no results")
    sections = list(summaries(results.values()))
    for stem, content in results.items():
        link = None
        if figures is not None:
            from ._plots import draw

            path = draw(content, figures / f"{stem}.svg")
            if path is not None:
                link = _link(path, page)
        sections.append(section(content, link))
    text = "\n".join(sections)
    if page is not None:
        old = page.read_text("utf-8")
        if old.count(BEGIN) != 1 or old.count(END) != 1:
            raise ValueError(f"{page} must hold `{BEGIN}` and `{END}` once each")
        before, after = old.split(BEGIN)[0], old.split(END)[1]
        page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", "utf-8")
    return text


def _link(path: Path, page: Path | None) -> str:
    """The link from the page to a figure, or the bare name."""
    return path.name if page is None else Path(os.path.relpath(path, page.parent)).as_posix()
