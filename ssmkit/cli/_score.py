"""`ssmkit score`."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ._console import aligned, print_json, progress_bar
from ._models import load_model, load_tokenizer
from ._options import DType, DTypeOption, JSONOption, ModelOption, QuantizeOption, TokenizerOption


if TYPE_CHECKING:
    from .._text import Tokenizer


class TextScore(NamedTuple):
    """How well a model predicts a text: `nats` for the `tokens` after the first, which stand for `bytes` of UTF-8."""

    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    tokens_per_second: float


def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A UTF-8 text.")],
    model: ModelOption = None,
    tokenizer: TokenizerOption = None,
    dtype: DTypeOption = DType.float32,
    quantize: QuantizeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Measure how well a model predicts a text.

    Nats per token, perplexity and bits per byte. The whole text is one sequence, and no context is cut off. The first
    token is not predicted.
    """
    from .._text import read_text

    text = read_text(file)
    if not text:
        raise ValueError(f"{file} is empty")
    result = score_text(load_model(model, dtype, quantize), load_tokenizer(model, tokenizer), text)
    if as_json:
        print_json(result._asdict())
        return
    pairs = {
        "nats/token": f"{result.nats_per_token:.4f}",
        "perplexity": f"{result.perplexity:.4f}",
        "bits/byte": f"{result.bits_per_byte:.4f}",
        "tokens": f"{result.tokens}",
        "bytes": f"{result.bytes}",
        "tokens/s": f"{result.tokens_per_second:.0f}",
    }
    print(aligned(pairs))


def score_text(model: Any, tokenizer: "Tokenizer", text: str) -> TextScore:
    """Score a text, with a bar on standard error.

    **Raises:** as `ssmkit.score`.
    """
    from .._score import score as score_tokens

    tokens = tokenizer.encode(text)
    if len(tokens) < 2:
        raise ValueError("a text of one token predicts nothing: at least 2 are needed")
    started = time.perf_counter()
    with progress_bar(len(tokens) - 1, log=False) as update:

        def progress(done: int) -> None:
            """Show the speed so far."""
            update(done, f"{done / (time.perf_counter() - started):.0f} tokens/s")

        result = score_tokens(model, tokens, progress=progress)
    size = len(text.encode()) - tokenizer.byte_length(tokens[0])
    return TextScore(
        nats_per_token=result.nats_per_token,
        perplexity=result.perplexity,
        bits_per_byte=result.nats / math.log(2.0) / size,
        tokens=result.tokens,
        bytes=size,
        tokens_per_second=result.tokens / (time.perf_counter() - started),
    )
