"""One run at a time in a folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


LOCK = ".lock"


@contextlib.contextmanager
def occupied(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder, made if need be, which no other run can use meanwhile.

    The system takes the lock back when the process ends, however it ends. Within a thread it can be taken again.

    **Raises:** `ValueError` when another run uses the folder, or it is a file.
    """
    from filelock import FileLock, Timeout

    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: name a directory.")
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.resolve() / LOCK, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{directory} is used by another run at this moment. Wait for its end, or name another directory."
        ) from None
    try:
        yield directory
    finally:
        lock.release()
