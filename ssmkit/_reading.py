"""Reading of files from outside: only regular files, and only up to a size.

Opening a pipe waits for a writer, a device may act when it is opened, and both may never end. Every file that another
party may have made is therefore opened here. Links to regular files count as regular files. Only a text that a person
names may also be a pipe, such as that of a process substitution.
"""

import errno
import io
import os
import stat
from collections.abc import Callable


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading.

    **Arguments:**

    - `path`: the file.

    **Returns:** the open file.

    **Raises:** `OSError` when there is no such file, or it is a folder, a pipe, a socket or a device.
    """
    return _open(path, getattr(os, "O_NONBLOCK", 0), stat.S_ISREG)


def open_named(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file or a pipe for reading. Opening a pipe waits for its writer.

    **Arguments:**

    - `path`: the path that a person named.

    **Returns:** the open file.

    **Raises:** `OSError` when there is no such file, or it is a folder, a socket or a device.
    """
    return _open(path, 0, stat.S_ISREG, stat.S_ISFIFO)


def _open(path: str | os.PathLike[str], flags: int, *kinds: Callable[[int], bool]) -> io.BufferedReader:
    """Open a file of one of these kinds for reading."""
    _require(os.stat(path), path, *kinds)
    # Another file may take the place of this one between the two checks. The second check is on the open file.
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
    """Read a regular file that is not too large.

    **Arguments:**

    - `path`: the file.
    - `most`: the largest number of bytes that it may have.

    **Returns:** the content of the file.

    **Raises:** `OSError`, as `open_regular`, and when the file is larger.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"Larger than {most:,} bytes", os.fspath(path))
    return content
