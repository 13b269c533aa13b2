"""The state of a run, on disk: whole, checked, and with the one before it, so that no single damage ends the run."""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import equinox as eqx
from jaxtyping import Array, Int, PyTree

from .._files import replacing
from .._reading import open_regular


NEWEST, PREVIOUS = "state.eqx", "state.previous.eqx"
_DIGEST = 32  # bytes of the checksum at the end of a file


class TrainState(eqx.Module):
    """Everything a run continues from; `model` holds the weights in float32 or wider."""

    model: PyTree
    optimizer: PyTree
    step: Int[Array, ""]


def save_state(directory: Path, state: TrainState) -> None:
    """Keep a state, and the one kept before it: at every moment at least one file is whole."""
    newest = directory / NEWEST
    with replacing(newest) as temporary:
        with open(temporary, "wb") as file:
            summed = _Summed(file)
            eqx.tree_serialise_leaves(summed, state)
            file.write(summed.digest())
            file.flush()
            os.fsync(file.fileno())
        if newest.exists():
            os.replace(newest, directory / PREVIOUS)


def load_state(directory: Path, like: TrainState) -> TrainState | None:
    """The newest state that is whole; `None` when none was kept.

    A damaged one is passed over with a warning, and replaced by the one before it.

    **Raises:** `ValueError` when all are damaged, or belong to another configuration.
    """
    problems: list[str] = []
    for path in (directory / NEWEST, directory / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = read_state(path, like)
        except ValueError as error:
            problems.append(str(error))
            continue
        if path.name == PREVIOUS:
            reason = problems[0] if problems else f"{directory / NEWEST} is missing"
            warnings.warn(f"{reason}. The run goes on from {path}, of step {int(state.step)}.", stacklevel=3)
            os.replace(path, directory / NEWEST)
        return state
    if problems:
        raise ValueError(f"{'; '.join(problems)}. Train into an empty directory.")
    return None


def read_state(path: Path, like: TrainState) -> Any:
    """Read a state of the same structure.

    **Raises:** `ValueError` when the file is damaged or belongs to another configuration.
    """
    try:
        with open_regular(path) as file:
            end = _check_sum(file)
            file.seek(0)
            state = eqx.tree_deserialise_leaves(file, like)
            if file.tell() != end:
                raise ValueError("it holds more than this configuration has")
    except Exception as error:  # equinox and numpy raise many kinds here
        reason = str(error.__cause__ or error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} does not fit this configuration or is damaged ({reason})") from error
    return state


class _Summed:
    """A file to write to, and the checksum of what was written."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._sum = hashlib.blake2b(digest_size=_DIGEST)

    def write(self, content: bytes) -> int:
        self._sum.update(content)
        return self._file.write(content)

    def digest(self) -> bytes:
        return self._sum.digest()


def _check_sum(file: BinaryIO) -> int:
    """Where the content of a file ends and its checksum begins.

    **Raises:** `ValueError` when the content is not what was written.
    """
    end = file.seek(0, os.SEEK_END) - _DIGEST
    if end < 0:
        raise ValueError("it is cut off")
    file.seek(0)
    sum, left = hashlib.blake2b(digest_size=_DIGEST), end
    while left > 0:
        block = file.read(min(left, 1 << 20))
        sum.update(block)
        left -= len(block) or left
    if sum.digest() != file.read(_DIGEST):
        raise ValueError("its checksum is another")
    return end
