"""The session of a command: a checkpoint, its loaded subjects, and a progress bar."""

import contextlib
import dataclasses
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import _ceilings
from ._checkpoint import Checkpoint, checkpoint
from ._environment import PACKAGES, device, environment, on_cpu
from ._geometry import GEOMETRIES, Geometry
from .peers import SUBJECTS, Subject, chosen, load, reasons
from .peers.ours import Model


_MOST_CEILING_BYTES = 2 << 30  # in three copies at most

Tick = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that all commands share."""

    geometry: str = "130m"
    subjects: list[str] | None = None
    repeats: int = 5
    checkpoints: Path | None = None
    torch_threads: int | None = None
    ceilings: bool = True


@dataclasses.dataclass
class Session:
    """The loaded subjects, and the reasons why others are not loaded."""

    settings: Settings
    geometry: Geometry
    checkpoint: Checkpoint
    subjects: dict[str, Subject]
    skipped: dict[str, str]
    reference: Model
    tick: Tick

    def prompts(self, batch: int, time: int) -> np.ndarray:
        """Random ids, the same in every run."""
        return np.random.default_rng(0).integers(0, self.geometry.vocab_size, (batch, time)).astype(np.int32)

    def report(self, command: str, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The content of a result file."""
        return report(command, self.settings, rows, skipped=self.skipped, **more)


def report(command: str, settings: Settings, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The content of a result file: the measurement, its environment, and every time.

    `more` may hold `left`, the sizes that come later: the file of a measurement that ended early says what it lacks.
    """
    if not more.get("left"):
        more.pop("left", None)
    return {
        "command": command,
        "geometry": settings.geometry,
        "repeats": settings.repeats,
        "device": device(),
        "environment": environment(*PACKAGES) | _torch_threads(),
        **more,
        "rows": rows,
    }


@contextlib.contextmanager
def session(command: str, settings: Settings) -> Iterator[Session]:
    """Load the subjects of a command.

    **Raises:** `ValueError` for a subject that does not exist, or when no subject can be measured.
    """
    names = chosen(command, settings.subjects)
    skipped = reasons(names, settings.geometry)
    names = [name for name in names if name not in skipped]
    if not names:
        raise ValueError(f"nothing to measure: {skipped}")
    if settings.torch_threads is not None:
        import torch

        torch.set_num_threads(settings.torch_threads)
    with checkpoint(settings.geometry, settings.checkpoints) as files, bar(command) as tick:
        subjects = {}
        with quiet():
            for name in names:
                tick(f"loading {name}")
                subjects[name] = load(name, files)
        ours: Any = subjects.get("ssmkit") or Model(files)
        yield Session(settings, GEOMETRIES[settings.geometry], files, subjects, skipped, ours, tick)


def limits(session: Session, *kinds: str) -> tuple[dict, Callable[[dict], dict[str, float]]]:
    """The ceilings as runs among those of the subjects, and a function that turns their times into rates.

    `kinds` names those that are measured; without a name, all are.
    """
    if not session.settings.ceilings:
        return {}, lambda times: {}
    # An accelerator reads a small model in less time than the host takes to ask for it.
    nbytes = min(session.geometry.weight_bytes(), _MOST_CEILING_BYTES) if on_cpu() else _MOST_CEILING_BYTES
    most = 256 if session.settings.geometry.startswith("tiny") else None
    runs, rates = _ceilings.probes(nbytes, session.geometry.hidden_size, most)
    return {name: run for name, run in runs.items() if not kinds or name[1] in kinds}, rates


def label(name: str) -> str:
    """The label of a subject in tables."""
    return SUBJECTS[name].label


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence libraries that print while they load."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def bar(command: str) -> Iterator[Tick]:
    """Show the current run on a line on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(command, total=None)
        yield lambda note: progress.update(task, description=f"{command}: {note}")


def _torch_threads() -> dict[str, int]:
    torch = sys.modules.get("torch")
    return {} if torch is None else {"torch_threads": torch.get_num_threads()}
