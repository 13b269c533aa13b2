"""Options that several commands share, and the handling of their results."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmkit._files import replacing


if TYPE_CHECKING:
    from ._session import Settings


GeometryOption = Annotated[
    str,
    typer.Option("--geometry", "-g", help="Such as 130m or lfm2-350m; random weights. A wrong name lists all."),
]
SubjectsOption = Annotated[
    str | None,
    typer.Option("--subjects", "-s", metavar="NAME,..", help="What to measure.", show_default="all that are installed"),
]
RepeatsOption = Annotated[int, typer.Option("--repeats", "-r", min=1, help="Of each run; medians are reported.")]
CheckpointsOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep checkpoints here.", show_default="they go when the run ends"),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--torch-threads", metavar="N", help="Of PyTorch.", show_default="its own choice")
]
CeilingsOption = Annotated[bool, typer.Option(help="Measure the machine's limits in the same run.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", "-o", metavar="FILE", help="Write all figures there; a folder gets a file.")
]


def names(text: str | None) -> list[str] | None:
    """The names of a list with commas between them."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def integers(text: str) -> list[int]:
    """The integers of a list with commas between them.

    **Raises:** `typer.BadParameter` for anything else.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"must be integers with commas between them, got {text!r}") from None


def make_settings(
    geometry: str,
    subjects: str | None,
    repeats: int,
    checkpoints: Path | None,
    torch_threads: int | None = None,
    ceilings: bool = True,
) -> "Settings":
    """Build the settings of a session.

    **Raises:** `ValueError` for a geometry that does not exist.
    """
    from ._geometry import GEOMETRIES

    if geometry not in GEOMETRIES:
        raise ValueError(f"no geometry is called {geometry}: there are {', '.join(GEOMETRIES)}")
    from ._session import Settings

    return Settings(geometry, names(subjects), repeats, checkpoints, torch_threads, ceilings)


def file_name(content: dict[str, Any]) -> str:
    """The name of a result file: command, geometry, device and version of jax."""
    place = content["device"]
    name = "cpu" if place["platform"] == "cpu" else re.sub("[^a-z0-9]+", "-", place["kind"].lower())
    line = ".".join(content["environment"]["jax"].split(".")[:2])
    return "_".join(filter(None, [content["command"], content.get("geometry"), name, f"jax{line}"])) + ".json"


def finish(contents: Iterable[dict[str, Any]], output: Path | None) -> None:
    """Store the figures as they come, each time with those before, and show the table of the last."""
    from . import _report

    last: dict[str, dict[str, Any]] = {}
    for content in contents:
        keep(content, output)
        last[content["command"]] = content
    for content in last.values():
        typer.echo(_report.section(content))


def keep(content: dict[str, Any], output: Path | None) -> None:
    """Write the figures to a file, or to one of a folder, if either was given. The file is never half written."""
    if output is not None:
        path = output / file_name(content) if output.is_dir() else output
        with replacing(path) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
