"""`ssmkit export`."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from ._models import companions, load_checkpoint
from ._options import DType, ModelOption, RevisionOption


class Platform(enum.StrEnum):
    """The platforms that programs can be exported for."""

    cpu = enum.auto()
    cuda = enum.auto()
    rocm = enum.auto()
    tpu = enum.auto()


def export(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    model: ModelOption = None,
    revision: RevisionOption = None,
    platform: Annotated[
        list[Platform] | None,
        typer.Option(
            help="A platform to export for; this machine need not have it. Can be given more than once.",
            show_default="as this process",
        ),
    ] = None,
    weights: Annotated[bool, typer.Option(help="Write the weights too.")] = True,
    context: Annotated[
        int | None,
        typer.Option(help="Most tokens of prompt and text together; attention needs it."),
    ] = None,
    dtype: Annotated[DType | None, typer.Option(help="The dtype of the weights.", show_default="as stored")] = None,
) -> None:
    """Write a model as StableHLO.

    Any process with JAX runs the artefact, without the model's Python code. The tokenizer is copied. `generate` and
    `score` take the artefact like a checkpoint: `--model DIR`. An artefact that DIR already holds is replaced.
    """
    from ..export import save_exported

    loaded = load_checkpoint(model, revision, dtype)
    found = companions(model, revision).items()
    files = sorted({path.parent if "/" in name else path for name, path in found})
    platforms = [str(name) for name in platform] if platform else None
    save_exported(loaded, target, platforms=platforms, weights=weights, context=context, beside=files)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {', '.join(path.name for path in sorted(target.iterdir()) if path.is_dir())}, {size:,} bytes")
