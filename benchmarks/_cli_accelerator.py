"""The commands that `accelerator.sh` runs on a machine that is there for minutes."""

from pathlib import Path
from typing import Annotated

import typer

from ._options import (
    CeilingsOption,
    GeometryOption,
    JsonOption,
    RepeatsOption,
    file_name,
    finish,
    integers,
    make_settings,
    names,
)


_NARROW = "ssmkit-bfloat16"
SubjectsOption = Annotated[str, typer.Option("--subjects", "-s", metavar="NAME,..", help="What to measure.")]


def accelerator(
    geometry: GeometryOption = "130m",
    batches: Annotated[str, typer.Option("--batches", "-b", metavar="N,..", help="Sequences.")] = "1,8,64",
    lengths: Annotated[str, typer.Option("--lengths", "-l", metavar="N,..", help="Tokens.")] = "2048,16384,512",
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Decoded per sequence.")] = 256,
    subjects: SubjectsOption = f"{_NARROW},mamba_ssm",
    repeats: RepeatsOption = 5,
    ceilings: CeilingsOption = True,
    turn: Annotated[Path | None, typer.Option(help="Measure only while no other process has this file.")] = None,
    output: JsonOption = None,
) -> None:
    """Decoding and prompts of one geometry, in turn; the figures of each size are stored before the next begins."""
    from . import accelerator as module
    from ._session import session

    settings = make_settings(geometry, subjects, repeats, None, ceilings=ceilings)
    with session("accelerator", settings) as loaded:
        finish(module.measure(loaded, integers(batches), integers(lengths), tokens, turn), output)


def trace(
    geometry: GeometryOption = "130m",
    length: Annotated[int, typer.Option("--length", "-l", min=16, help="Tokens of the prompt.")] = 2048,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Decoded.")] = 8,
    subjects: SubjectsOption = _NARROW,
    output: JsonOption = None,
) -> None:
    """Profiles of a prompt and of decoding: the kernels that take the time; with a folder, the profiles in a zip."""
    from . import trace as module
    from ._session import report, session

    settings = make_settings(geometry, subjects, 1, None)
    zipped = None
    if output is not None and output.is_dir():
        zipped = (output / file_name(report("trace", settings, []))).with_suffix(".zip")
    with session("trace", settings) as loaded:
        finish([module.measure(loaded, length, tokens, zipped)], output)


def suite(
    tests: Annotated[
        str | None, typer.Option(metavar="NAME,..", help="Files of tests.", show_default="numerics and programs")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes side by side; a TPU serves one: 0.")] = 0,
    seconds: Annotated[float | None, typer.Option(help="Leave out what takes longer in all.")] = None,
    output: JsonOption = None,
) -> None:
    """The tests of a checkout on this device. A failing test is a result: the exit code is 0."""
    from . import suite as module

    finish([module.measure(names(tests) or module.FILES, workers, seconds)], output)
