"""Options that several commands have."""

import enum
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
RevisionOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The branch, tag or commit of a model on the hub.", show_default="the hub's main branch"
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|FILE|ID",
        help="A tokenizer.json or tokenizer.model, its folder, or an id on the Hugging Face hub.",
        show_default="the model's own",
    ),
]
NoSpecialTokensOption = Annotated[
    bool, typer.Option("--no-special-tokens", help="Leave out what the tokenizer puts around a text, such as a BOS.")
]
DTypeOption = Annotated[
    DType | None, typer.Option(help="Of the weights; norms and decay rates stay float32.", show_default="float32")
]
QuantizeOption = Annotated[
    Kind | None, typer.Option(help="Store the matrices of projections and embeddings so.", show_default="no")
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
