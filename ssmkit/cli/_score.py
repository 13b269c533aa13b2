"""`ssmkit score`."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ._console import aligned, print_json, progress_bar
from ._models import device_name, encode, load_model, load_tokenizer
from ._options import (
    DTypeOption,
    JSONOption,
    MeshOption,
    ModelOption,
    NoSpecialTokensOption,
    QuantizeOption,
    RevisionOption,
    TokenizerOption,
    TokenizerRevisionOption,
    make_mesh,
)
from ._streams import read_input


if TYPE_CHECKING:
    from ..text._tokenizer import Tokenizer


class TextScore(NamedTuple):
    """The score of a text: `nats` for the `tokens` after the first, and the number of their UTF-8 `bytes`."""

    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    tokens_per_second: float


def score(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A UTF-8 text; `-` reads standard input.")],
    model: ModelOption = None,
    revision: RevisionOption = None,
    tokenizer: TokenizerOption = None,
    tokenizer_revision: TokenizerRevisionOption = None,
    no_special_tokens: NoSpecialTokensOption = False,
    dtype: DTypeOption = None,
    quantize: QuantizeOption = None,
    mesh: MeshOption = None,
    as_json: JSONOption = False,
) -> None:
    """Measure how well a model predicts a text.

    It prints nats per token, perplexity and bits per byte. The whole text is one sequence, and no context is cut off.
    The first token is not predicted, unless the tokenizer puts a token before every text.
    """
    from ..text._files import read_text

    text = read_input() if file == "-" else read_text(Path(file))
    if not text:
        raise ValueError(f"{'standard input' if file == '-' else file} is empty")
    devices = make_mesh(mesh)
    loaded = load_model(model, revision, dtype, quantize, devices)
    words = load_tokenizer(model, revision, tokenizer, tokenizer_revision)
    result = score_text(loaded, words, text, special=not no_special_tokens)
    if as_json:
        print_json(result._asdict() | {"device": device_name(devices)})
        return
    pairs = {
        "nats/token": f"{result.nats_per_token:.4f}",
        "perplexity": f"{result.perplexity:.4f}",
        "bits/byte": f"{result.bits_per_byte:.4f}",
        "tokens": f"{result.tokens}",
        "bytes": f"{result.bytes}",
        "tokens/s": f"{result.tokens_per_second:.0f}",
        "device": device_name(devices),
    }
    print(aligned(pairs))


def score_text(model: Any, tokenizer: "Tokenizer", text: str, *, special: bool = True) -> TextScore:
    """Score a text, with a progress bar on standard error.

    **Arguments:**

    - `special`: whether to add the special tokens that the tokenizer puts around a text.

    **Raises:** as `ssmkit.score`.
    """
    from ..evaluation._score import score as score_tokens

    tokens = encode(tokenizer, text, special=special)
    if len(tokens) < 2:
        raise ValueError("a text of one token predicts nothing: at least 2 are needed")
    score_tokens(model, tokens[:2])  # compiled here, so that the speed below is the model's: one program fits all
    started = time.perf_counter()
    with progress_bar(len(tokens) - 1, log=False) as update:

        def progress(done: int) -> None:
            """Show the speed so far."""
            update(done, f"{done / (time.perf_counter() - started):.0f} tokens/s")

        result = score_tokens(model, tokens, progress=progress)
    size = len(text.encode()) - _first_length(tokenizer, text, tokens)
    return TextScore(
        nats_per_token=result.nats_per_token,
        perplexity=result.perplexity,
        bits_per_byte=result.nats / math.log(2.0) / size,
        tokens=result.tokens,
        bytes=size,
        tokens_per_second=result.tokens / (time.perf_counter() - started),
    )


def _first_length(tokenizer: "Tokenizer", text: str, tokens: list[int]) -> int:
    """The number of a text's bytes that its first token covers: none if the tokenizer put it before the text."""
    bare = tokenizer.encode(text, special=False)
    if tokens[: len(bare)] != bare:
        return 0
    length, first = tokenizer.byte_length(tokens[0]), tokenizer.decode(tokens[:1])
    # The token of a text's first word may contain a space that is not in the text.
    spaced = length == len(first.encode()) + 1 and text.startswith(first) and not text.startswith(" ")
    return length - spaced
