"""`ssmkit generate`."""

import random
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ._console import aligned, print_json
from ._logprobs import log_probs_of, table
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
    TokenizerRevisionOption,
    make_mesh,
)
from ._prompts import read_prompts
from ._sampling import (
    MinPOption,
    RepetitionPenaltyOption,
    SamplingOptions,
    SeedOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    settings_of,
    stop_texts,
    stop_tokens,
)
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
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Write the log-probability of every new token, and of the N most probable in its place.",
            show_default="no",
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    tokenizer_revision: TokenizerRevisionOption = None,
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
    options = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty)
    options.check()
    stops = stop_texts(stop)
    loaded = load_model(model, revision, dtype, quantize, devices)
    settings = settings_of(model, revision)
    chosen = options.completed(settings)
    words = load_tokenizer(model, revision, tokenizer, tokenizer_revision)
    prompts = [encode(words, text, special=not no_special_tokens) for text in texts]
    seed = random.randrange(2**32) if seed is None else seed
    ask = _Request(
        loaded,
        words,
        prompts,
        max_new_tokens,
        chosen.sampler(),
        stop_tokens(words, stops, loaded.stop_tokens),
        stops,
        seed,
        logprobs,
    )
    used_seed = {} if chosen.temperature == 0.0 else {"seed": seed}
    if len(prompts) * n == 1 and not json:
        new = _show_one(ask, "" if no_echo else texts[0])
    else:
        results, new = _several(ask, n)
        if json:
            continuations = [{"prompt": texts[i // n]} | result for i, result in enumerate(results)]
            print_json({"continuations": continuations} | used_seed)
        else:
            echoed = ["" if no_echo else text for text in texts for _ in range(n)]
            _write_several(echoed, results)
    count = f"{sum(map(len, prompts))} tokens" + (f" in {len(prompts)} texts" if batch is not None else "")
    statistics = {"prompt": count} | new | {"device": device_name(devices)} | chosen.told(options, settings)
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
    log_probs: int | None

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
            log_probs=self.log_probs,
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
    if ask.log_probs is not None:
        _write(table(log_probs_of(stream.generation, ask.words)[0]))
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
    if ask.log_probs is not None:
        for result, entries in zip(results, log_probs_of(stream.generation, ask.words), strict=True):
            result["logprobs"] = entries
    new = f"{sum(lengths)} tokens in {len(texts)} texts"
    return results, {"new": new, "in": f"{seconds:.2f} s, compilation included"}


def _write_several(echoed: list[str], results: list[dict[str, Any]]) -> None:
    for i, (prompt, result) in enumerate(zip(echoed, results, strict=True)):
        text = prompt + result["text"]
        _write(f"=== {i + 1} of {len(results)} ===\n{text}" + "\n" * (not text.endswith("\n")))
        _write(table(result.get("logprobs", [])))


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
