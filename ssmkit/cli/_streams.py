"""Standard input, output and error that may be closed, full, or unable to show a character."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


def prepare() -> None:
    """Make the standard streams safe to write to. Call it first.

    A closed stream is redirected to the null device. Otherwise the next opened file would get its number, and Python
    would write text for a closed standard error to standard output.

    **Raises:** `OSError` when standard output was closed, because nobody would see the results.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for number in range(3):
        _occupy(number)
    for name in closed:
        if name != "stdin":  # which is not there to be read
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character
    if "stdout" in closed:
        raise OSError(f"standard output is closed: send it to {os.devnull} if nobody reads it")


def _occupy(number: int) -> None:
    """Redirect a closed file descriptor to the null device."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)


def settle() -> OSError | None:
    """Flush the buffers, and drop text that cannot be written, so that Python does not complain at exit.

    **Returns:** the reason why standard output cannot be written, if any. Lost text on standard error is not a failure.
    """
    _flush(sys.stderr)
    refusal = _flush(sys.stdout)
    return None if refusal is None else OSError(refusal.errno, refusal.strerror, "standard output")


def _flush(stream: Any) -> OSError | None:
    try:
        stream.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return error
    return None


def tell(text: str) -> None:
    """Write a line on standard error, if possible."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def read_input() -> str:
    """Read all of standard input, as UTF-8 in every locale.

    **Raises:** `ValueError` when it is closed or not UTF-8, `OSError` when it cannot be read.
    """
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    try:
        content = getattr(sys.stdin, "buffer", sys.stdin).read()
        return content if isinstance(content, str) else content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text: {error}") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), "standard input") from None


def input_lines() -> Iterator[str]:
    """The lines of standard input as they come, without their ends, as UTF-8 in every locale.

    **Raises:** as `read_input`.
    """
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    for line in getattr(sys.stdin, "buffer", sys.stdin):
        try:
            yield (line if isinstance(line, str) else line.decode("utf-8")).rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8 text: {error}") from None
