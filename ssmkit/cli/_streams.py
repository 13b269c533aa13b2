"""Standard input, output and error: closed, full, or unable to show a character."""

import contextlib
import io
import os
import sys
from typing import Any


def prepare() -> None:
    """Make the standard streams safe to write to. Call first.

    A stream that was closed leads nowhere from here on. Otherwise the next file to be opened would get its number, and
    Python would write to standard output what is meant for a closed standard error.

    **Raises:** `OSError` when standard output was closed: nobody would see the results.
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
    """Let a file descriptor that is not open lead nowhere."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)


def settle() -> OSError | None:
    """Write out what is buffered; what cannot be written vanishes, so that Python does not complain at its end.

    **Returns:** why standard output cannot be written, if so. A lost word on standard error is no failure.
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
    """A line on standard error, if that can be written."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def read_input() -> str:
    """All of standard input, which is UTF-8 whatever the locale.

    **Raises:** `ValueError` when it is closed or no UTF-8 text, `OSError` when it cannot be read.
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
