"""`ssmkit convert`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from ._models import companions, load_model
from ._options import DType


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint, as --model of `generate`.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    format: Annotated[str, typer.Option(help="hf or state-spaces.")] = "hf",
    dtype: Annotated[DType | None, typer.Option(help="Of the weights.", show_default="as they are stored")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write a checkpoint in another format.

    Or in another dtype. Its tokenizer, its chat template and its settings for generation come along.
    """
    from ..checkpoint import save_pretrained

    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: name a folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise ValueError(f"{target} is not empty: pass --force to write into it all the same")
    model = load_model(source, dtype)
    save_pretrained(model, target, format=format)
    for path in companions(source):
        if path.resolve() != (target / path.name).resolve():
            shutil.copyfile(path, target / path.name)
    print(f"{target}: {format} format, {sum(path.stat().st_size for path in target.iterdir()):,} bytes")
