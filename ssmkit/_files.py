"""Writing of files and folders: each is complete or absent, and a failure to write names the file and the reason.

A file is written beside its final place first. It is moved there when it is on the disk, with the mode of the umask.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path`. The file written there replaces `path` when the block ends without an error.

    **Arguments:**

    - `path`: the file.
    - `keep`: the path to which the previous file moves; `None` deletes it.

    **Raises:** `OSError`, as `writing`; the previous file at `path` is then still there.
    """
    temporary = path.with_name(path.name + ".partial")
    with writing(path):
        temporary.unlink(missing_ok=True)  # what a killed process left, whatever kind of file it is
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            _settle(temporary, mode)
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_files(folder: Path, names: Iterable[str]) -> Iterator[Mapping[str, Path]]:
    """Temporary paths for several files. The files move into a folder when all of them are written.

    **Arguments:**

    - `folder`: the folder, created if necessary; other files in it stay unchanged.
    - `names`: the names of the files; each of them must be written.

    **Raises:** `OSError`, as `writing`; the previous files are then still there.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".save-", dir=folder) as scratch:
        mode, _ = _modes(Path(scratch))
        paths = {name: Path(scratch, name) for name in names}
        yield paths
        for name, path in paths.items():
            with writing(folder / name):
                _settle(path, mode)
        for name, path in paths.items():
            os.replace(path, folder / name)


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """An empty temporary folder. It replaces `target` when the block ends without an error.

    **Raises:** `OSError`, as `writing`; the previous content of `target` is then still there.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with writing(target):
            mode, folder_mode = _modes(scratch)
            yield scratch
            scratch.chmod(folder_mode)
            for path in filter(Path.is_file, scratch.rglob("*")):
                _settle(path, mode)
        _move(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(scratch: Path, target: Path) -> None:
    """Put a finished folder in the place of the old one."""
    if not target.exists():
        os.rename(scratch, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    os.rename(target, old)  # over the empty folder
    try:
        os.rename(scratch, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _modes(folder: Path) -> tuple[int, int]:
    """The modes of the umask for files and folders. Temporary folders, and files of some libraries, are private."""
    file, inner = folder / ".file", folder / ".folder"
    file.touch()
    inner.mkdir()
    try:
        return file.stat().st_mode, inner.stat().st_mode
    finally:
        file.unlink()
        inner.rmdir()


def _settle(path: Path, mode: int) -> None:
    """Flush a written file to the disk, and set its mode."""
    path.chmod(mode)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a system error on writing, such as a full disk, into one `OSError` that names `path`.

    The libraries that write raise their own exceptions for such an error: NumPy does so in Python, safetensors and
    tokenizers in Rust, with `(os error 28)` in the text, and tensorstore in C++, with `os_error_code='28'`. Every other
    exception passes unchanged.
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
        foreign = re.search(r"\(os error (\d+)\)|os_error_code='(\d+)'", str(error))
        if foreign:
            number = int(foreign[1] or foreign[2])
            return number, os.strerror(number)
        error = error.__cause__
    return None, ""
