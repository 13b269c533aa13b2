"""Options that several commands have."""

import enum
from pathlib import Path
from typing import Annotated

import typer


class DType(enum.StrEnum):
    """The dtypes that weights can be loaded in."""

    float32 = enum.auto()
    bfloat16 = enum.auto()
    float16 = enum.auto()


class Kind(enum.StrEnum):
    """How matrices can be quantised."""

    int8 = enum.auto()
    bfloat16 = enum.auto()


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="DIR|FILE|ID",
        help="A checkpoint folder, a weight file, or an id on the Hugging Face hub.",
        show_default="the embedded model",
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A tokenizer.json, or its folder.", show_default="the model's own"),
]
DTypeOption = Annotated[DType, typer.Option(help="Of the weights; norms and decay rates stay float32.")]
QuantizeOption = Annotated[
    Kind | None, typer.Option(help="Store the matrices of projections and embeddings so.", show_default="no")
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
