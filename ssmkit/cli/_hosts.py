"""Processes that train together, on one host or on many, and what ends them."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

from ._failures import explain
from ._streams import settle, tell


_GRACE = 10  # seconds for which a process that failed waits for the others to end with it


class Place(NamedTuple):
    """The place of this process in a run of many, as the options give it."""

    coordinator: str | None
    processes: int | None
    process: int | None
    heartbeat: int

    @property
    def is_given(self) -> bool:
        """Whether the options or JAX's own variable say that there are others."""
        given = (self.coordinator, self.processes, self.process) != (None, None, None)
        return given or "JAX_COORDINATOR_ADDRESS" in os.environ


@contextlib.contextmanager
def together(place: Place) -> Iterator[None]:
    """A context in which this process is one of a run; alone if no option says otherwise.

    SIGTERM acts like Ctrl-C, so that the state is saved. With others, either asks all of them to stop after the same
    step. A process that fails does not wait for the others, which may be in want of it.

    **Raises:** `ValueError` when the others cannot be found.
    """
    if not place.is_given:
        with _handling(signal.SIGTERM, signal.default_int_handler):
            yield
        return
    _join(place)
    try:
        with _handling(signal.SIGINT, _stop_all), _own_output():
            yield
    except BaseException as error:
        _leave(error)


def _join(place: Place) -> None:
    import jax

    anywhere = place.coordinator in (None, "auto")
    try:
        jax.distributed.initialize(
            None if anywhere else place.coordinator,
            place.processes,
            place.process,
            heartbeat_timeout_seconds=place.heartbeat,
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"the other processes cannot be found ({str(error).splitlines()[0]}). Give each --coordinator HOST:PORT, "
            "--processes N and --process I, or start them by Slurm, Open MPI or on TPUs with --coordinator auto."
        ) from error


def _stop_all(*_: object) -> None:
    """Ask all processes to stop: JAX passes SIGTERM on. At the second time, this process alone stops at once."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(error: BaseException) -> NoReturn:
    """End this process with a line. The others may be dead, or waiting for it in the middle of a step."""
    import jax

    code, message = explain(error) or (1, "")
    if isinstance(error, jax.errors.JaxRuntimeError):
        code, message = 1, f"another process of this run has ended ({str(error).splitlines()[0][:200]})"
    if message:
        tell(f"error: {message}")
    elif code == 1:
        sys.excepthook(type(error), error, error.__traceback__)
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(_GRACE)
    settle()
    os._exit(code)


@contextlib.contextmanager
def _own_output() -> Iterator[None]:
    """A context in which only Python writes to standard output: Gloo's messages about its peers go to the log."""
    try:
        shown = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        yield
        return
    with open(shown, "w", encoding="utf-8", errors="backslashreplace") as output:
        try:
            with contextlib.redirect_stdout(output):
                yield
        finally:
            output.flush()
            os.dup2(shown, 1)


@contextlib.contextmanager
def _handling(number: signal.Signals, handler: Callable[..., Any]) -> Iterator[None]:
    """A context in which a signal has another handler, if it is the main thread's: others cannot be told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
