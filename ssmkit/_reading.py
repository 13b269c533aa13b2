"""Files to read: regular ones alone, and no more of them than makes sense.

Opening a pipe waits for somebody to write, a device may act when it is opened, and both can go on for ever. Every file
that somebody else may have made is opened here, by whichever reader. Links to regular files are regular files. Only a
text that a person names may be a pipe too, such as that of a process substitution.
"""

import errno
import io
import os
import stat
from collections.abc import Callable


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A regular file, open for reading.

    **Arguments:**

    - `path`: the file.

    **Returns:** the open file.

    **Raises:** `OSError` when there is no such file, or it is a folder, a pipe, a socket or a device.
    """
    return _open(path, getattr(os, "O_NONBLOCK", 0), stat.S_ISREG)


def open_named(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A regular file or a pipe, open for reading; of a pipe, whoever writes to it is waited for.

    **Arguments:**

    - `path`: what a person named.

    **Returns:** the open file.

    **Raises:** `OSError` when there is no such file, or it is a folder, a socket or a device.
    """
    return _open(path, 0, stat.S_ISREG, stat.S_ISFIFO)


def _open(path: str | os.PathLike[str], flags: int, *kinds: Callable[[int], bool]) -> io.BufferedReader:
    """A file of one of these kinds, open for reading."""
    _require(os.stat(path), path, *kinds)
    # Between the two looks another file may have taken its place: the second is at what was opened.
    descriptor = os.open(path, os.O_RDONLY | flags | getattr(os, "O_BINARY", 0))
    try:
        _require(os.fstat(descriptor), path, *kinds)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require(status: os.stat_result, path: str | os.PathLike[str], *kinds: Callable[[int], bool]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not any(is_kind(status.st_mode) for is_kind in kinds):
        raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a regular file that is not too large.

    **Arguments:**

    - `path`: the file.
    - `most`: the most bytes that it may have.

    **Returns:** its content.

    **Raises:** `OSError`, as `open_regular`, and when the file is larger.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"Larger than {most:,} bytes", os.fspath(path))
    return content
