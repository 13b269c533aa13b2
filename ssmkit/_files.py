"""Writing of files: a file is complete or absent, and a failure to write names the file and the reason."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. The file written there replaces `path` when the block ends without an error.

    **Raises:** `OSError`, as `writing`; the previous file at `path` is then still there.
    """
    temporary = path.with_name(path.name + ".partial")
    with writing(path):
        temporary.unlink(missing_ok=True)  # what a killed process left, whatever kind of file it is
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a system error on writing, such as a full disk, into one `OSError` that names `path`.

    The libraries that write raise their own exceptions for such an error: equinox and NumPy do so in Python,
    safetensors and tokenizers in Rust, with `(os error 28)` in the text. Every other exception passes unchanged.
    """
    try:
        yield
    except Exception as error:
        number, reason = _refusal(error)
        if number is None:
            raise
        raise OSError(number, reason, os.fspath(path)) from error


def _refusal(error: BaseException | None) -> tuple[int | None, str]:
    """The number and text of the system error behind an exception; `None` if there is none."""
    while error is not None:
        if isinstance(error, OSError):
            # NumPy's exception has no number: "100000 requested and 2484 written".
            return error.errno or errno.EIO, error.strerror or f"cannot be written in full ({error})"
        from_rust = re.search(r"\(os error (\d+)\)", str(error))
        if from_rust:
            return int(from_rust[1]), os.strerror(int(from_rust[1]))
        error = error.__cause__
    return None, ""
