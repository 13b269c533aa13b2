"""The output of commands: aligned text, JSON, and a progress bar."""

import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ._streams import tell


def aligned(pairs: Mapping[str, str]) -> str:
    """One line per pair, with aligned values."""
    width = max(map(len, pairs))
    return "\n".join(f"{name:{width}}  {value}" for name, value in pairs.items())


def print_json(content: Mapping[str, Any]) -> None:
    """Print strict JSON on standard output: an infinity becomes the string `"Infinity"`."""
    print(json.dumps(_strict(content), indent=2, allow_nan=False))


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _strict(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value


@contextlib.contextmanager
def without_panics() -> Iterator[None]:
    """Hold back what libraries beneath Python write to standard error when they panic.

    The text is shown after the block. It is dropped if the block ends in a `ValueError`, whose message suffices.
    """
    with contextlib.ExitStack() as stack:
        try:
            shown = os.dup(2)
            stack.callback(os.close, shown)
            held = stack.enter_context(tempfile.TemporaryFile())
            os.dup2(held.fileno(), 2)
        except OSError:  # no standard error, or nowhere to hold it
            yield
            return
        told = False
        try:
            yield
        except ValueError:
            told = True
            raise
        finally:
            os.dup2(shown, 2)
            held.seek(0)
            if not told:
                with contextlib.suppress(OSError):
                    os.write(2, held.read())


class Update(Protocol):
    """A function that moves a progress bar."""

    def __call__(self, completed: int, note: str) -> None:
        """Move the bar to `completed` steps, with a `note` beside it."""


@contextlib.contextmanager
def progress_bar(total: int, *, log: bool) -> Iterator[Update]:
    """Show a progress bar on standard error while the block runs.

    **Arguments:**

    - `total`: the number of all steps.
    - `log`: whether each update becomes a line if standard error is not a terminal. Otherwise nothing is shown there.
    """
    if not sys.stderr.isatty():
        yield lambda completed, note: tell(f"{completed}/{total}  {note}") if log else None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task("", total=total)
        yield lambda completed, note: progress.update(task, completed=completed, description=note)
