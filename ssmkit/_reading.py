"""Files to read: regular ones alone, and no more of them than makes sense.

Opening a pipe waits for somebody to write, a device may act when it is opened, and both can go on for ever. Every file
that somebody else may have made is opened here, by whichever reader. Links to regular files are regular files.
"""

import errno
import io
import os
import stat


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A regular file, open for reading.

    **Arguments:**

    - `path`: the file.

    **Returns:** the open file.

    **Raises:** `OSError` when there is no such file, or it is a folder, a pipe, a socket or a device.
    """
    _require_regular(os.stat(path), path)
    # Between the two looks another file may have taken its place: the second is at what was opened, without waiting.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _require_regular(os.fstat(descriptor), path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
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
