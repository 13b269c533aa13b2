"""`ssmkit train`."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._console import progress_bar
from ._hosts import Place, together
from ._models import enable_compilation_cache
from ._options import MeshOption, make_mesh
from ._score import score_text
from ._streams import tell
from ._train_model import complete_model, make_model


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


def _print_config(wanted: bool) -> bool:
    if wanted:
        _require_extra()
        print(_configuration(None).to_toml(), end="")
        raise typer.Exit()
    return wanted


def train(
    texts: Annotated[Path, typer.Option("--train", metavar="FILE", help="UTF-8 text to learn from.")],
    valid: Annotated[Path, typer.Option("--valid", metavar="FILE", help="UTF-8 text to measure progress on.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="The folder of model, tokenizer, settings and loss curve."),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="[model] with keys of Mamba2Config, or of the model_type in it; [training] with keys of TrainConfig.",
            show_default="a small model, trained in minutes",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.", show_default="as configured")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per step.", show_default="as configured")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per sequence.", show_default="as configured")] = None,
    mesh: MeshOption = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="Train with other processes: the address of process 0; auto asks Slurm, Open MPI or the TPU's host.",
            show_default="JAX_COORDINATOR_ADDRESS, or no others",
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="The number of processes.", show_default="as the cluster says")
    ] = None,
    process: Annotated[
        int | None, typer.Option(min=0, help="The number of this process.", show_default="as the cluster says")
    ] = None,
    heartbeat: Annotated[
        int, typer.Option(min=1, help="The seconds after which a silent process counts as dead.")
    ] = 30,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config", callback=_print_config, is_eager=True, help="Print the default FILE.toml and exit."
        ),
    ] = False,
) -> None:
    """Train a language model and its tokenizer: a Mamba-2, or what [model] says.

    The same command, given again, continues an interrupted run. The model so far is already in DIR. DIR/train.toml
    holds the complete configuration. Other texts or settings need another DIR.

    On many hosts, every process gets the same command with its own --process, and the same DIR.
    """
    _require_extra()
    with together(Place(coordinator, processes, process, heartbeat)):
        changes = {"steps": steps, "batch_size": batch_size, "context": context}
        _train({"train": texts, "valid": valid, "out": out}, _configuration(config, **changes), mesh)


def _train(files: "dict[str, Path]", run: "TrainConfig", mesh: str | None) -> None:
    """Train, and print the score of the result."""
    enable_compilation_cache()
    from ..text._files import read_text
    from ..text._tokenizer import Tokenizer
    from ..training import train_files
    from ..training._hosts import is_first
    from ..training._state import steps_in

    out, devices, reported = files["out"], make_mesh(mesh), False
    try:
        with progress_bar(run.steps, log=True) as update:

            def report(progress: "Progress") -> None:
                nonlocal reported
                reported = True
                update(progress.step, _note(progress, run))

            make = functools.partial(make_model, mesh=devices)
            model = train_files(make, run, **files, report=report, complete_model=complete_model, mesh=devices)
    except KeyboardInterrupt:
        rest = "" if steps_in(out) else ": there is none yet, so it starts again"
        tell(f"interrupted: the same command continues from the last state kept in {out}{rest}")
        raise
    result = score_text(model, Tokenizer.from_file(out), read_text(files["valid"]), special=False)
    if is_first():
        if not reported:
            tell(f"{out} holds this run, finished after {run.steps} steps: nothing is left to do")
        print(f"{out}: {result.bits_per_byte:.4f} bits per byte on {files['valid']}")


def _require_extra() -> None:
    """Check that the packages of the extra `train` are installed.

    **Raises:** `ValueError` naming the extra when a package is missing.
    """
    try:
        from ..training._extra import require

        for package in ("optax", "matplotlib", "orbax.checkpoint"):
            require(package)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from None


def _configuration(path: Path | None, **changes: int | None) -> "TrainConfig":
    """The run of a file, or the default run, with every key of its model filled in, and with the given changes."""
    from ..training import TrainConfig

    if path is None:
        run = TrainConfig(complete_model(_DEFAULT_MODEL), **_DEFAULT_TRAINING)
    else:
        run = TrainConfig.from_toml(path, complete_model)
    return dataclasses.replace(run, **{name: value for name, value in changes.items() if value is not None})


def _note(progress: "Progress", run: "TrainConfig") -> str:
    """The note beside the progress bar of a run."""
    left = (run.steps - progress.step) * run.batch_size * run.context / progress.tokens_per_second
    parts = [f"loss {progress.train_loss:.3f}"]
    if progress.valid_loss is not None:
        parts.append(f"valid {progress.valid_loss:.3f}")
    minutes, seconds = divmod(round(left), 60)
    return "  ".join([*parts, f"{progress.tokens_per_second:.0f} tokens/s", f"{minutes}:{seconds:02} left"])
