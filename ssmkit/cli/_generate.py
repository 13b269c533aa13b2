"""`ssmkit generate`."""

import itertools
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ._console import aligned
from ._models import device_name, enable_compilation_cache, encode, load_model, load_tokenizer
from ._options import (
    DTypeOption,
    ModelOption,
    NoSpecialTokensOption,
    QuantizeOption,
    RevisionOption,
    TokenizerOption,
)
from ._streams import read_input, tell


if TYPE_CHECKING:
    from .. import AbstractSampler
    from ..text._tokenizer import Tokenizer


# The number of tokens that a batch generates per dispatch.
_TURN = 256


def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="The text to continue; `-` reads standard input.")
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option("--file", "--prompt-file", metavar="FILE", help="Read the prompt from a file, unchanged."),
    ] = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=0, help="The most new tokens.")] = 200,
    n: Annotated[int, typer.Option("--n", min=1, help="The number of continuations, all in one batch.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Choose among the K likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among the likeliest tokens that make up this probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Choose among tokens at least this fraction as likely as the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1, tokens that have occurred become less likely.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="The seed of the random choices.", show_default="a new one")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help=r"End before this text; `\n` and `\t` are escapes. Can be given more than once."
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    no_special_tokens: NoSpecialTokensOption = False,
    dtype: DTypeOption = None,
    quantize: QuantizeOption = None,
) -> None:
    """Continue a text.

    The text is written as it is generated, after the prompt; statistics follow on standard error. Several continuations
    are written when all have ended, each under a line such as `=== 1 of 4 ===`. The first of them is the one that the
    same seed gives alone.
    """
    text = _read_prompt(prompt, prompt_file)
    enable_compilation_cache()
    sampler = _sampler(temperature, top_k, top_p, min_p, repetition_penalty)
    loaded = load_model(model, revision, dtype, quantize)
    words = load_tokenizer(model, revision, tokenizer)
    prompt_tokens = encode(words, text, special=not no_special_tokens)
    stop_texts = _stop_texts(stop or [])
    stops = _stop_tokens(words, stop_texts, loaded.stop_tokens)
    seed = random.randrange(2**32) if seed is None else seed

    def pieces(tokens: Iterable[int]) -> Iterator[str]:
        """The pieces of a continuation's text, up to its end."""
        from ..text._tokenizer import until

        before_stop = itertools.takewhile(lambda token: token not in stops, tokens)
        return until(words.decode_stream(before_stop, after=prompt_tokens), stop_texts)

    ask = _Request(loaded, prompt_tokens, max_new_tokens, sampler, stops, seed)
    shown = _show_one(ask, text, pieces) if n == 1 else _show_several(ask, n, text, pieces)
    statistics = {"prompt": f"{len(prompt_tokens)} tokens"} | shown | {"device": device_name()}
    if temperature != 0.0:
        statistics["seed"] = str(seed)
    tell(aligned(statistics))


class _Request(NamedTuple):
    """The model, prompt and settings of one call."""

    model: Any
    prompt: list[int]
    max_new_tokens: int
    sampler: "AbstractSampler"
    stops: set[int]
    seed: int


def _show_one(ask: _Request, text: str, pieces: Callable[[Iterable[int]], Iterator[str]]) -> dict[str, str]:
    """Write the prompt and its continuation as it is generated.

    **Returns:** the statistics.
    """
    import jax

    from .. import stream

    started = time.perf_counter()
    key, stops = jax.random.key(ask.seed), sorted(ask.stops)
    tokens = stream(ask.model, ask.prompt, ask.max_new_tokens, ask.sampler, stop_token=stops, key=key)
    times: list[float] = []

    def timed() -> Iterator[int]:
        for token in tokens:
            times.append(time.perf_counter())
            yield token

    last = text
    _write(text)
    for last in pieces(timed()):
        _write(last)
    if not last.endswith("\n"):
        _write("\n")
    statistics = {"new": f"{len(times)} tokens"}
    if times:
        statistics["first after"] = f"{times[0] - started:.2f} s, compilation included"
    if len(times) > 1 and times[-1] > times[0]:
        statistics["then"] = f"{(len(times) - 1) / (times[-1] - times[0]):.1f} tokens/s"
    return statistics


def _show_several(ask: _Request, n: int, text: str, pieces: Callable[[Iterable[int]], Iterator[str]]) -> dict[str, str]:
    """Write the prompt with each of `n` continuations, which are generated in one batch.

    **Returns:** the statistics.
    """
    import jax
    import numpy as np

    from .. import generate as generate_tokens, resume

    started = time.perf_counter()
    key, stops = jax.random.key(ask.seed), sorted(ask.stops)
    batch = generate_tokens(ask.model, [ask.prompt] * n, 0, ask.sampler, stop_token=stops, key=key)
    rows: list[list[int]] = [[] for _ in range(n)]
    # Turns of equal length share a program, and the memory does not grow with the number of tokens.
    turns = -(-ask.max_new_tokens // _TURN)
    left = ask.max_new_tokens
    while left and not np.all(batch.finished):
        count = min(left, -(-ask.max_new_tokens // turns))
        batch = resume(ask.model, batch, count, ask.sampler, stop_token=stops)
        for row, tokens, length in zip(rows, np.asarray(batch.tokens), np.asarray(batch.lengths), strict=True):
            row.extend(tokens[:length].tolist())
        left -= count
    seconds = time.perf_counter() - started
    for i, row in enumerate(rows):
        whole = text + "".join(pieces(row))
        _write(f"=== {i + 1} of {n} ===\n{whole}" + "\n" * (not whole.endswith("\n")))
    return {"new": f"{sum(map(len, rows))} tokens in {n} texts", "in": f"{seconds:.2f} s, compilation included"}


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """Read the prompt from the argument, the file or standard input.

    **Raises:** `ValueError` when there is no prompt or more than one, or when it is empty or not UTF-8.
    """
    from ..text._tokenizer import read_text

    if (prompt is None) == (prompt_file is None):
        raise ValueError('give one prompt: ssmkit generate "TEXT", or --file FILE, or `-` for standard input')
    if "-" in (prompt, prompt_file):
        text = read_input()
    elif prompt_file is not None:
        text = read_text(Path(prompt_file))
    else:
        text = os.fsencode(prompt or "").decode("utf-8", "surrogateescape")  # UTF-8 whatever the locale
    if not text:
        raise ValueError("the prompt is empty: give at least one character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("the prompt is not UTF-8 text")
    return text


def _stop_texts(stops: list[str]) -> list[str]:
    """The stop texts, with their escapes resolved.

    **Raises:** `ValueError` for an empty text.
    """
    if "" in stops:
        raise ValueError("--stop must be a text of at least one character, got an empty one")
    written = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return [re.sub(r"\\([nrt\\])", lambda found: written[found[1]], stop) for stop in stops]


def _stop_tokens(words: "Tokenizer", stops: list[str], own: tuple[int, ...]) -> set[int]:
    """The ids to stop at: the model's own stop tokens, and stop texts that are special tokens.

    Decoding leaves special tokens out, so that they would never be found in a text.
    """
    ids = {words.token_id(stop) for stop in stops}
    return set(own) | {id for id in ids if id is not None and not words.decode([id])}


def _sampler(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
) -> "AbstractSampler":
    """The sampler. At temperature 0 it is greedy: filters change nothing there, but the penalty does.

    **Raises:** `ValueError` naming every option that is out of range.
    """
    from .. import Greedy, Sampler
    from ..generation._sampling import out_of_range

    given = (temperature or 1.0, top_k, top_p, min_p, repetition_penalty)
    problems = out_of_range(given, lambda name: f"--{name.replace('_', '-')}", "0 takes the likeliest token")
    if problems:
        raise ValueError("; ".join(problems))
    if temperature != 0.0:
        return Sampler(*given)
    return Greedy() if repetition_penalty is None else Sampler(top_k=1, repetition_penalty=repetition_penalty)
