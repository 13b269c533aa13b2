"""`ssmkit train`."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import progress_bar
from ._models import enable_compilation_cache
from ._score import score_text


if TYPE_CHECKING:
    from ..training import Progress, TrainConfig


_DEFAULT_MODEL = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "state_size": 32,
    "head_dim": 32,
    "chunk_size": 32,
    "tie_word_embeddings": True,
}
_DEFAULT_TRAINING = {"vocab_size": 1024, "steps": 600, "batch_size": 8, "context": 256, "learning_rate": 3e-3}


def train(
    texts: Annotated[Path, typer.Option("--train", metavar="FILE", help="UTF-8 text to learn from.")],
    valid: Annotated[Path, typer.Option("--valid", metavar="FILE", help="UTF-8 text to measure progress on.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where model, tokenizer and loss curve go.")],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="[model] with keys of Mamba2Config and [training] with keys of TrainConfig.",
            show_default="a small model, trained in minutes",
        ),
    ] = None,
) -> None:
    """Train a Mamba-2 and its tokenizer.

    An interrupted run continues when the same command is given again.
    """
    enable_compilation_cache()
    try:
        from ..training import TrainConfig, train_files
        from ..training._extra import require

        require("optax")
        require("matplotlib")
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from None
    from .._text import Tokenizer, read_text

    run = TrainConfig.from_toml(config) if config else TrainConfig(_DEFAULT_MODEL, **_DEFAULT_TRAINING)
    try:
        with progress_bar(run.steps, log=True) as update:
            model = train_files(
                _make_model,
                run,
                train=texts,
                valid=valid,
                out=out,
                report=lambda progress: update(progress.step, _note(progress, run)),
            )
    except KeyboardInterrupt:
        print(f"interrupted: the same command continues from the last state kept in {out}", file=sys.stderr)
        raise
    result = score_text(model, Tokenizer.from_file(out), read_text(valid), special=False)
    print(f"{out}: {result.bits_per_byte:.4f} bits per byte on {valid}")


def _note(progress: "Progress", run: "TrainConfig") -> str:
    """What to show of a run's progress."""
    left = (run.steps - progress.step) * run.batch_size * run.context / progress.tokens_per_second
    parts = [f"loss {progress.train_loss:.3f}"]
    if progress.valid_loss is not None:
        parts.append(f"valid {progress.valid_loss:.3f}")
    minutes, seconds = divmod(round(left), 60)
    return "  ".join([*parts, f"{progress.tokens_per_second:.0f} tokens/s", f"{minutes}:{seconds:02} left"])


def _make_model(run: "TrainConfig", vocab_size: int) -> Any:
    """The Mamba-2 that a run starts from.

    **Raises:** `ValueError` for keys that its configuration lacks, or that lack, or values it cannot have.
    """
    import jax

    from ..checkpoint import architectures

    build = next(known.model for known in architectures() if known.name == "mamba2")
    configuration: Any = next(field.type for field in dataclasses.fields(build) if field.name == "config")
    fields = {field.name: field for field in dataclasses.fields(configuration) if field.name != "vocab_size"}
    problems = [f"unknown key {name} (known: {', '.join(fields)})" for name in sorted(set(run.model) - set(fields))]
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    problems += [f"missing key {name}" for name in sorted(required - set(run.model))]
    if problems:
        raise ValueError(f"[model]: {'; '.join(problems)}.")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in run.model.items()}
    try:
        return build(configuration(vocab_size=vocab_size, **values), key=jax.random.key(run.seed))
    except TypeError as error:
        raise ValueError(f"[model]: a value is of the wrong type: {str(error).partition(chr(10))[0]}") from error
