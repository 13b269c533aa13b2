"""The lock that lets only one run use a folder at a time."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ._hosts import once


LOCK = ".lock"


@contextlib.contextmanager
def occupied(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Lock a folder against other runs while the block runs, and create the folder if necessary.

    The system releases the lock when the process ends, however it ends. The same thread can take the lock again. Of
    many processes, the first takes it for all.

    **Raises:** `ValueError` when another run uses the folder, or when the path is a file.
    """
    with contextlib.ExitStack() as stack:
        once(lambda: stack.enter_context(_locked(Path(directory))) and None)
        yield Path(directory)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[Path]:
    from filelock import FileLock, Timeout

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
