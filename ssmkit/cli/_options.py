"""Options that several commands share."""

import enum
from typing import Annotated

import typer


class DType(enum.StrEnum):
    """The dtypes that weights can be loaded in."""

    float32 = enum.auto()
    bfloat16 = enum.auto()
    float16 = enum.auto()


class Kind(enum.StrEnum):
    """The kinds of quantised matrices."""

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
    bool, typer.Option("--no-special-tokens", help="Leave out the tokens that the tokenizer puts around a text.")
]
DTypeOption = Annotated[
    DType | None,
    typer.Option(help="The dtype of the weights; norms and decay rates stay float32.", show_default="float32"),
]
QuantizeOption = Annotated[
    Kind | None, typer.Option(help="Quantise the matrices of projections and embeddings.", show_default="no")
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
