"""Files that are whole or absent, however writing ends, and failures to write that name the file and the reason."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the block ends without an error.

    **Raises:** `OSError`, as `writing`; whatever `path` held before is still there then.
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
    """Turn a system's refusal to write, such as a full disk, into one `OSError` that names `path`.

    The libraries that write raise exceptions of their own for it: equinox and NumPy in Python, safetensors and
    tokenizers in Rust, which puts `(os error 28)` into the text. Every other exception passes.
    """
    try:
        yield
    except Exception as error:
        number, reason = _refusal(error)
        if number is None:
            raise
        raise OSError(number, reason, os.fspath(path)) from error


def _refusal(error: BaseException | None) -> tuple[int | None, str]:
    """The number and the words of the system's error that an exception stands for; `None` if it stands for none."""
    while error is not None:
        if isinstance(error, OSError):
            # NumPy's has no number: "100000 requested and 2484 written".
            return error.errno or errno.EIO, error.strerror or f"cannot be written in full ({error})"
        from_rust = re.search(r"\(os error (\d+)\)", str(error))
        if from_rust:
            return int(from_rust[1]), os.strerror(int(from_rust[1]))
        error = error.__cause__
    return None, ""
