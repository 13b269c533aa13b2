"""The states of a run on disk, by orbax: written in the background, each device's part by its host, the newest kept."""

import contextlib
import hashlib
import json
import logging
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Int, PyTree

from .._files import writing
from .._reading import open_regular, read_regular
from .._shown import first_line
from ._hosts import AllStopped, is_first, many, once


STATES = "states"
_CHECKSUMS, _ITEM, _UNFINISHED = "checksums.json", "default", ".orbax-checkpoint-tmp"
_MOST_BYTES = 1 << 26


class TrainState(eqx.Module):
    """The state from which a run continues; `model` holds the weights in float32 or wider."""

    model: PyTree
    optimizer: PyTree
    step: Int[Array, ""]


class States:
    """The states of a run: a folder for each, by its step. At every moment at least one of them is complete.

    A state is written beside its final place and moved there when it is complete. Orbax does not notice changed bytes,
    so each state has checksums of its files.
    """

    def __init__(self, directory: Path, keep: int):
        """**Arguments:**

        - `directory`: the folder of the run.
        - `keep`: how many of the newest states stay.
        """
        self._folder = directory.resolve() / STATES
        self._keep = keep
        self._manager: Any = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "States":
        self._stack.enter_context(_quiet())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until everything is on the disk.

        If a process of several has failed, the others would wait for it in vain.

        **Raises:** `OSError` when the last state cannot be written.
        """
        with self._stack:
            if self._manager is not None and (kind is None or not many() or issubclass(kind, AllStopped)):
                with self._written(), contextlib.closing(self._manager):
                    self._manager.wait_until_finished()

    def load(self, like: TrainState) -> TrainState | None:
        """Load the newest undamaged state; `None` when no state was saved.

        A damaged state is skipped with a warning, and removed.

        **Arguments:**

        - `like`: the structure, with a `jax.ShapeDtypeStruct` with a sharding in place of every array.

        **Raises:** `ValueError` when all states are damaged, or belong to another configuration.
        """
        problems: dict[int, str] = {}
        for step in reversed(once(lambda: steps_in(self._folder.parent))):
            path = self._folder / str(step)
            try:
                once(lambda path=path: _check_sums(path))
                state = read_state(path, like)
            except ValueError as error:
                problems[step] = str(error)
                continue
            if problems:
                reasons = "; ".join(problems.values())
                if is_first():
                    warnings.warn(f"{reasons}. The run goes on from {path}, of step {step}.", stacklevel=4)
                once(lambda: [shutil.rmtree(self._folder / str(step)) for step in problems] and None)
            return state
        if problems:
            raise ValueError(f"{'; '.join(problems.values())}. Train into an empty directory.")
        return None

    def save(self, state: TrainState) -> None:
        """Begin to save a state. It is complete after the next call, or at the end of the context.

        **Raises:** `OSError` when this or the previous state cannot be written.
        """
        import orbax.checkpoint as ocp

        with self._written():
            if self._manager is None:
                background = ocp.AsyncOptions(post_finalization_callback=self._add_checksums)
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=self._keep, cleanup_tmp_directories=True, async_options=background
                )
                self._manager = ocp.CheckpointManager(self._folder, options=options)
            self._manager.wait_until_finished()
            self._manager.save(int(state.step), args=ocp.args.StandardSave(_named(state)))

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """A context in which a failure to write is one `OSError`, and leaves no unfinished folder."""
        try:
            with writing(self._folder):
                yield
        except OSError:
            for unfinished in self._folder.glob(f"*{_UNFINISHED}*") if is_first() else ():
                shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _add_checksums(self) -> None:
        """Give the state that is complete, but not yet in its place, its checksums."""
        if is_first():
            for path in self._folder.glob(f"*{_UNFINISHED}*"):
                (path / _CHECKSUMS).write_text(json.dumps(_sums(path / _ITEM), indent=1), "utf-8")


def steps_in(directory: Path) -> list[int]:
    """The steps of the states in the folder of a run, in order."""
    folder = directory / STATES
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and name.isascii() and str(int(name)) == name)


def read_state(path: Path, like: TrainState) -> TrainState:
    """Read a state of the same structure.

    **Raises:** `ValueError` when it is damaged or belongs to another configuration.
    """
    import orbax.checkpoint as ocp

    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            named = checkpointer.restore(path / _ITEM, args=ocp.args.StandardRestore(_named(like)))
        return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in _named(like)])
    except Exception as error:  # orbax and tensorstore raise many kinds here
        raise _unfit(path, error) from error


def _named(state: TrainState) -> dict[str, Any]:
    """The arrays of a state, by their paths in it, so that other programs can read them."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _check_sums(path: Path) -> None:
    """Check the files of a state against their checksums.

    **Raises:** `ValueError` when one of them is damaged.
    """
    try:
        listed, found = json.loads(read_regular(path / _CHECKSUMS, _MOST_BYTES)), _sums(path / _ITEM)
        if not isinstance(listed, dict) or listed != found:
            other = (name for name, sum in found.items() if not isinstance(listed, dict) or listed.get(name) != sum)
            raise ValueError(f"{next(other, 'a missing file')}: its checksum is another")
    except (OSError, ValueError, RecursionError) as error:
        raise _unfit(path, error) from error


def _sums(folder: Path) -> dict[str, str]:
    """The checksum of every file in a folder."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            with open_regular(path) as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    return sums


def _unfit(path: Path, error: Exception) -> ValueError:
    reason = first_line(error.__cause__ or error) or type(error).__name__
    return ValueError(f"{path} does not fit this configuration or is damaged ({reason[:300]})")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what orbax reports of failures, also in its threads: it raises them too."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    hook, unraisable = threading.excepthook, sys.unraisablehook
    is_other = lambda record: "orbax" not in f"{record.pathname} {record.getMessage()}"

    def excepthook(raised: threading.ExceptHookArgs) -> None:
        if not type(raised.thread).__module__.startswith("orbax."):
            hook(raised)

    def unraisablehook(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":  # of a failed write, to which tensorstore reports the rest
            unraisable(raised)

    threading.excepthook, sys.unraisablehook = excepthook, unraisablehook
    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hook, unraisable
        for logger in loggers:
            logger.removeFilter(is_other)
