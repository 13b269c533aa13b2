"""The commands that measure recurrences and compiled programs. Nothing heavy is imported before one runs."""

import json
import os
from typing import Annotated

import typer

from ._options import JsonOption, RepeatsOption, integers, keep, names


TokensOption = Annotated[int, typer.Option("--tokens", "-n", min=1, help="Of the sequence.")]
WidthOption = Annotated[int, typer.Option("--width", "-w", help="Features of a token, a multiple of 128.")]


def recurrences(
    tokens: TokensOption = 2048,
    width: WidthOption = 512,
    repeats: RepeatsOption = 5,
    only: Annotated[
        str | None, typer.Option(metavar="NAME,..", help="Names of models.", show_default="all of them")
    ] = None,
    output: JsonOption = None,
) -> None:
    """Every published recurrence: tokens per second, and chunks against a plain scan."""
    from . import recurrences as module

    content = module.measure(_known(only, width), width, tokens, repeats)
    keep(content, output)
    typer.echo(module.table(content["results"]))


def chunks(
    tokens: TokensOption = 2048,
    width: WidthOption = 512,
    repeats: RepeatsOption = 5,
    sizes: Annotated[str, typer.Option(metavar="N,..", help="Tokens of a chunk.")] = "16,32,64,128,256",
    only: Annotated[
        str | None, typer.Option(metavar="NAME,..", help="Names of models.", show_default="one or two of each family")
    ] = None,
    output: JsonOption = None,
) -> None:
    """Chunk sizes and schedules of every kernel family."""
    from . import chunks as module

    content = module.measure(_known(only, width) or module.NAMES, width, tokens, integers(sizes), repeats)
    keep(content, output)
    typer.echo(module.table(content["results"]))


def precision(
    tokens: TokensOption = 16384,
    output: JsonOption = None,
) -> None:
    """The error of many tokens at slow decays, one by one and in chunks, against float64."""
    from . import precision as module

    content = module.measure(tokens)
    keep(content, output)
    typer.echo(module.table(content["results"]))


def targets(
    only: Annotated[str, typer.Option("--targets", metavar="NAME,..", help="As of `ssmkit compile`.")] = "v5e,v6e,h100",
    output: JsonOption = None,
) -> None:
    """What the compilers of TPU and GPU make of the programs. Nothing is computed, and no device is needed."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from . import targets as module

    content = module.measure(names(only) or [])
    keep(content, output)
    typer.echo(module.table(content["results"]))


def scale(
    only: Annotated[
        str | None,
        typer.Option(metavar="WORDS,..", help="Of the commands that are shown.", show_default="all of them"),
    ] = None,
    output: JsonOption = None,
) -> None:
    """What large models and long prompts need on many devices, by their compilers; a file keeps its other cases."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("LIBTPU_INIT_ARGS", "--xla_jf_dump_llo_text=false")  # schedules take as long as all else
    from . import scale as module

    content = {"results": []}
    if output is not None and output.is_file():
        content = json.loads(output.read_text("utf-8"))
    for measured in module.measure(names(only), content):
        keep(measured, output)
        content = measured
    typer.echo(module.needs() + "\n")
    for programs in module.TABLES:
        typer.echo(module.table(content["results"], *programs) + "\n")


def _known(only: str | None, width: int) -> list[str] | None:
    """The names that were given.

    **Raises:** `typer.BadParameter` for a width that heads do not divide, and for a name that no model has.
    """
    from .recurrences import mixers

    if width < 1 or width % 128:
        raise typer.BadParameter(f"--width must be a multiple of 128, got {width}")
    asked, known = names(only), mixers(width)
    if unknown := [name for name in asked or [] if name not in known]:
        raise typer.BadParameter(f"--only: no model is called {', '.join(unknown)}: there are {', '.join(known)}")
    return asked
