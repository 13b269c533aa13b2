"""`ssmkit generate`."""

import random
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ._console import aligned, print_json
from ._models import device_name, enable_compilation_cache, encode, load_model, load_tokenizer
from ._options import (
    DTypeOption,
    JSONOption,
    MeshOption,
    ModelOption,
    NoSpecialTokensOption,
    QuantizeOption,
    RevisionOption,
    TokenizerOption,
    make_mesh,
)
from ._prompts import read_prompts, unescaped
from ._streams import tell


if TYPE_CHECKING:
    from .. import AbstractSampler, Stream
    from ..text._tokenizer import Tokenizer


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="The text to continue; `-`, or a pipe, reads standard input."),
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option("--file", "--prompt-file", metavar="FILE", help="Read the prompt from a file, unchanged."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="FILE", help=r"Continue every line of a file; `\n` and `\t` are escapes."),
    ] = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="The most new tokens.")] = 200,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="The number of continuations of each prompt.")] = 1,
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
    mesh: MeshOption = None,
    no_echo: Annotated[bool, typer.Option("--no-echo", help="Write only the new text, without the prompt.")] = False,
    json: JSONOption = False,
) -> None:
    """Continue a text, or several.

    The text is written as it is generated, after the prompt; statistics follow on standard error. Several texts are
    written when all have ended, each under a line such as `=== 1 of 4 ===`. The first of them is the one that the same
    seed gives alone.
    """
    texts = read_prompts(prompt, prompt_file, batch)
    enable_compilation_cache()
    devices = make_mesh(mesh)
    sampler = _sampler(temperature, top_k, top_p, min_p, repetition_penalty)
    stop_texts = _stop_texts(stop or [])
    loaded = load_model(model, revision, dtype, quantize, devices)
    words = load_tokenizer(model, revision, tokenizer)
    prompts = [encode(words, text, special=not no_special_tokens) for text in texts]
    seed = random.randrange(2**32) if seed is None else seed
    ask = _Request(
        loaded,
        words,
        prompts,
        max_new_tokens,
        sampler,
        _stop_tokens(words, stop_texts, loaded.stop_tokens),
        stop_texts,
        seed,
    )
    used_seed = {} if temperature == 0.0 else {"seed": seed}
    if len(prompts) * n == 1 and not json:
        new = _show_one(ask, "" if no_echo else texts[0])
    else:
        results, new = _several(ask, n)
        if json:
            continuations = [{"prompt": texts[i // n]} | result for i, result in enumerate(results)]
            print_json({"continuations": continuations} | used_seed)
        else:
            echoed = ["" if no_echo else text for text in texts for _ in range(n)]
            _write_several([text + result["text"] for text, result in zip(echoed, results, strict=True)])
    count = f"{sum(map(len, prompts))} tokens" + (f" in {len(prompts)} texts" if batch is not None else "")
    statistics = {"prompt": count} | new | {"device": device_name(devices)}
    tell(aligned(statistics | {name: str(value) for name, value in used_seed.items()}))


class _Request(NamedTuple):
    """The model, prompts and settings of one call."""

    model: Any
    words: "Tokenizer"
    prompts: list[list[int]]
    max_new_tokens: int
    sampler: "AbstractSampler"
    stops: list[int]
    stop_texts: list[str]
    seed: int

    def stream(self, prompts: Any) -> "Stream":
        """Stream the texts of continuations."""
        import jax

        from .. import stream

        return stream(
            self.model,
            prompts,
            self.max_new_tokens,
            self.sampler,
            stop_token=self.stops,
            key=jax.random.key(self.seed),
            tokenizer=self.words,
            stop_text=self.stop_texts,
        )


def _show_one(ask: _Request, text: str) -> dict[str, str]:
    """Write a text, and the continuation of the only prompt as it is generated.

    **Returns:** the statistics.
    """
    started = time.perf_counter()
    stream = ask.stream(ask.prompts[0])
    times: list[float] = []
    last = text
    _write(text)
    for last in stream:
        times.append(time.perf_counter())
        _write(last)
    if not last.endswith("\n"):
        _write("\n")
    count = int(stream.generation.lengths[0])
    statistics = {"new": f"{count} tokens"}
    if times:
        statistics["first after"] = f"{times[0] - started:.2f} s, compilation included"
    if count > 1 and times and times[-1] > times[0]:
        statistics["then"] = f"{(count - 1) / (times[-1] - times[0]):.1f} tokens/s"
    return statistics


def _several(ask: _Request, n: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """`n` continuations of every prompt in one batch; each prompt is consumed once.

    **Returns:** the facts about each continuation, and the statistics.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from .. import generate as generate_tokens, rows

    started = time.perf_counter()
    start = generate_tokens(ask.model, ask.prompts, 0, ask.sampler, key=jax.random.key(ask.seed))
    if n > 1:
        start = rows.take(start, jnp.asarray(np.repeat(np.arange(len(ask.prompts)), n)))
    stream = ask.stream(start)
    texts = [""] * (len(ask.prompts) * n)
    for pieces in stream:
        texts = [text + (piece or "") for text, piece in zip(texts, pieces, strict=True)]
    seconds = time.perf_counter() - started
    lengths, finished = (np.asarray(x).tolist() for x in (stream.generation.lengths, stream.generation.finished))
    results = [
        {"text": text, "tokens": length, "finished": ended}
        for text, length, ended in zip(texts, lengths, finished, strict=True)
    ]
    new = f"{sum(lengths)} tokens in {len(texts)} texts"
    return results, {"new": new, "in": f"{seconds:.2f} s, compilation included"}


def _write_several(texts: list[str]) -> None:
    for i, text in enumerate(texts):
        _write(f"=== {i + 1} of {len(texts)} ===\n{text}" + "\n" * (not text.endswith("\n")))


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _stop_texts(stops: list[str]) -> list[str]:
    """The stop texts, with their escapes resolved.

    **Raises:** `ValueError` for an empty text.
    """
    if "" in stops:
        raise ValueError("--stop must be a text of at least one character, got an empty one")
    return [unescaped(stop) for stop in stops]


def _stop_tokens(words: "Tokenizer", stops: list[str], own: tuple[int, ...]) -> list[int]:
    """The ids to stop at: the model's own stop tokens, and stop texts that are special tokens.

    Decoding leaves special tokens out, so that they would never be found in a text.
    """
    ids = {words.token_id(stop) for stop in stops}
    return sorted(set(own) | {id for id in ids if id is not None and not words.decode([id])})


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
