"""The command line: a command per measurement. Nothing heavy is imported before one runs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ._cli_accelerator import accelerator, suite, trace
from ._cli_recurrences import chunks, precision, recurrences, scale, targets
from ._options import (
    CeilingsOption,
    CheckpointsOption,
    GeometryOption,
    JsonOption,
    RepeatsOption,
    SubjectsOption,
    ThreadsOption,
    finish,
    integers,
    make_settings,
)


if TYPE_CHECKING:
    from ._session import Settings


Results: TypeAlias = Iterator[dict[str, Any]]

_DEFAULT_BATCHES = "1,4,16,64"
_DEFAULT_TOTALS = "128,256,512,1024,2048,4096"
_DEFAULT_CONTEXTS = "0,1024,4096,16384,65536"
_LENGTHS = {"cpu": "128,512,2048", "gpu": "512,1024,2048,4096,8192,16384"}

app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def _options() -> None:
    """Measure ssmkit, beside other software and the limits of this machine.

    A wrong result ends a measurement: no speed is reported for it.
    """
    # On a GPU, JAX would take most of the memory at once, and leave none for other libraries.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@app.command()
def decode(
    geometry: GeometryOption = "130m",
    batches: Annotated[str, typer.Option("--batches", "-b", metavar="N,..", help="Sequences.")] = _DEFAULT_BATCHES,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Per sequence; slow subjects do fewer.")] = 64,
    subjects: SubjectsOption = None,
    repeats: RepeatsOption = 5,
    checkpoints: CheckpointsOption = None,
    torch_threads: ThreadsOption = None,
    ceilings: CeilingsOption = True,
    output: JsonOption = None,
) -> None:
    """Time per decoded token, and the bandwidth that its weights and states reach."""
    settings = make_settings(geometry, subjects, repeats, checkpoints, torch_threads, ceilings)
    finish(_decode(settings, integers(batches), tokens), output)


@app.command()
def prefill(
    geometry: GeometryOption = "130m",
    lengths: Annotated[
        str | None, typer.Option("--lengths", "-l", metavar="N,..", help="Tokens.", show_default="by the device")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Sequences.")] = 1,
    subjects: SubjectsOption = None,
    repeats: RepeatsOption = 5,
    checkpoints: CheckpointsOption = None,
    torch_threads: ThreadsOption = None,
    ceilings: CeilingsOption = True,
    output: JsonOption = None,
) -> None:
    """Tokens of a prompt per second, and the share of the machine's rate of matrix products."""
    settings = make_settings(geometry, subjects, repeats, checkpoints, torch_threads, ceilings)
    finish(_prefill(settings, None if lengths is None else integers(lengths), batch), output)


@app.command()
def uncached(
    geometry: GeometryOption = "130m",
    totals: Annotated[str, typer.Option("--totals", "-l", metavar="N,..", help="Prompt and new.")] = _DEFAULT_TOTALS,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Cached steps that are timed.")] = 32,
    subjects: SubjectsOption = "ssmkit",
    repeats: RepeatsOption = 3,
    checkpoints: CheckpointsOption = None,
    torch_threads: ThreadsOption = None,
    output: JsonOption = None,
) -> None:
    """Generation with the cache against a forward pass over the whole prefix for every token."""
    settings = make_settings(geometry, subjects, repeats, checkpoints, torch_threads)
    finish(_uncached(settings, integers(totals), tokens), output)


@app.command()
def context(
    geometry: GeometryOption = "130m",
    contexts: Annotated[str, typer.Option("--contexts", "-l", metavar="N,..", help="Tokens.")] = _DEFAULT_CONTEXTS,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Decoded and timed at each.")] = 32,
    subjects: SubjectsOption = None,
    repeats: RepeatsOption = 5,
    checkpoints: CheckpointsOption = None,
    ceilings: CeilingsOption = True,
    output: JsonOption = None,
) -> None:
    """Time and memory per token after more and more tokens."""
    settings = make_settings(geometry, subjects, repeats, checkpoints, ceilings=ceilings)
    finish(_context(settings, integers(contexts), tokens), output)


@app.command()
def startup(
    geometry: GeometryOption = "130m",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that is compiled for.")] = 512,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Generated.")] = 16,
    subjects: SubjectsOption = None,
    repeats: RepeatsOption = 3,
    checkpoints: CheckpointsOption = None,
    output: JsonOption = None,
) -> None:
    """Loading, compiling and the first token, with an empty and with a filled compilation cache."""
    from . import startup as module

    settings = make_settings(geometry, subjects, repeats, checkpoints)
    finish([module.measure(settings, prompt, tokens)], output)


@app.command()
def train(
    geometry: GeometryOption = "10m",
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Sequences.")] = 4,
    length: Annotated[int, typer.Option("--length", "-l", min=2, help="Tokens of each.")] = 1024,
    rounds: Annotated[int, typer.Option(min=1, help="Processes per subject.")] = 2,
    subjects: SubjectsOption = None,
    repeats: RepeatsOption = 5,
    checkpoints: CheckpointsOption = None,
    output: JsonOption = None,
) -> None:
    """A training step, forwards and backwards: tokens per second and memory."""
    from . import train as module

    settings = make_settings(geometry, subjects, repeats, checkpoints)
    finish([module.measure(settings, batch, length, rounds)], output)


@app.command()
def ceilings(geometry: GeometryOption = "130m", repeats: RepeatsOption = 5, output: JsonOption = None) -> None:
    """The machine's limits alone, each in several forms."""
    from . import ceilings as module

    finish([module.measure(make_settings(geometry, None, repeats, None))], output)


@app.command("all")
def everything(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the results go.")],
    geometry: GeometryOption = "130m",
    training: Annotated[str, typer.Option(help="The geometry that is trained.")] = "10m",
    repeats: RepeatsOption = 5,
    checkpoints: CheckpointsOption = None,
    quick: Annotated[bool, typer.Option(help="Small sizes, to see that everything runs.")] = False,
) -> None:
    """Every measurement with its defaults, a file for each."""
    from . import ceilings as limits, startup as start, train as training_step

    settings = make_settings(geometry, None, repeats, checkpoints)
    alone = make_settings(geometry, "ssmkit", min(repeats, 3), checkpoints)
    trained = make_settings(training, None, repeats, checkpoints)
    sizes = lambda small, usual: integers(small if quick else usual)
    steps: list[Callable[[], Results]] = [
        lambda: iter([limits.measure(settings)]),
        lambda: _decode(settings, sizes("1,2", _DEFAULT_BATCHES), 8 if quick else 64),
        lambda: _prefill(settings, [96] if quick else None, 1),
        lambda: _uncached(alone, sizes("64,128", _DEFAULT_TOTALS), 8 if quick else 32),
        lambda: _context(alone, sizes("0,64", _DEFAULT_CONTEXTS), 8 if quick else 32),
        lambda: iter([start.measure(alone, *((32, 4) if quick else (512, 16)))]),
        lambda: iter([training_step.measure(trained, *((1, 64, 1) if quick else (4, 1024, 2)))]),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        finish(step(), folder)


@app.command()
def report(
    results: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Of result files.", show_default="those of this repository")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Put the tables between this page's marks rather than show them."),
    ] = None,
    figures: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the plots, as SVG.")] = None,
) -> None:
    """Markdown tables, and plots, out of result files."""
    from . import _report

    folder = Path(__file__).parent / "results" if results is None else results
    text = _report.render(folder, page, figures)
    if page is None:
        typer.echo(text)


for _command in (recurrences, chunks, precision, targets, scale, accelerator, suite, trace):
    app.command()(_command)


@app.command()
def perplexity_parity(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="UTF-8 text.")],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Holds config.json, weights and tokenizer.json.",
            show_default="the embedded model",
        ),
    ] = None,
) -> None:
    """Perplexity of a text by ssmkit and by HF transformers; the exit code is 1 when they differ."""
    from . import perplexity_parity as module

    result = module.measure(model, file.read_bytes().decode("utf-8"))
    typer.echo(module.table(result))
    if not module.agrees(result):
        raise typer.Exit(1)


def _decode(settings: "Settings", batches: list[int], tokens: int) -> Results:
    from . import _session, decode as module

    with _session.session("decode", settings) as session:
        yield from module.measure(session, batches, tokens)


def _prefill(settings: "Settings", lengths: list[int] | None, batch: int) -> Results:
    from . import _environment, _session, prefill as module

    if lengths is None:
        lengths = integers(_LENGTHS["cpu" if _environment.on_cpu() else "gpu"])
    with _session.session("prefill", settings) as session:
        yield from module.measure(session, lengths, batch)


def _uncached(settings: "Settings", totals: list[int], tokens: int) -> Results:
    from . import _session, uncached as module

    with _session.session("uncached", settings) as session:
        yield module.measure(session, totals, tokens)


def _context(settings: "Settings", contexts: list[int], tokens: int) -> Results:
    from . import _session, context as module

    with _session.session("context", settings) as session:
        yield module.measure(session, contexts, tokens)
