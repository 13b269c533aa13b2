"""`ssmkit convert`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from ._models import companions, load_checkpoint
from ._options import DType, RevisionOption


def convert(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[SRC] DST",
            help="A checkpoint, as --model of `generate` (default: the embedded model), and the folder to write.",
        ),
    ],
    revision: RevisionOption = None,
    format: Annotated[str, typer.Option(help="hf or state-spaces.")] = "hf",
    dtype: Annotated[DType | None, typer.Option(help="The dtype of the weights.", show_default="as stored")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write a checkpoint in another format.

    The dtype can change too. The tokenizer, the chat template and the settings for generation are copied.
    """
    from .._files import replacing
    from ..checkpoint import save_pretrained

    if len(places) > 2:
        raise ValueError(f"one checkpoint and one folder at most, got {len(places)}: {' '.join(places)}")
    source, target = places[0] if len(places) == 2 else None, Path(places[-1])
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: name a folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        alone = "" if source else " the embedded model"
        raise ValueError(f"{target} is not empty: pass --force to write{alone} into it all the same")
    model = load_checkpoint(source, revision, dtype)
    save_pretrained(model, target, format=format)
    for name, path in companions(source, revision).items():
        if path.resolve() != (target / name).resolve():
            (target / name).parent.mkdir(exist_ok=True)
            with replacing(target / name) as temporary:
                shutil.copyfile(path, temporary)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {format} format, {size:,} bytes")
