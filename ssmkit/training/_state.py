"""The state of a run on disk, with a checksum and with the previous state, so that one damaged file ends no run."""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import equinox as eqx
from jaxtyping import Array, Int, PyTree

from .._files import replacing
from .._reading import open_regular
from .._shown import first_line


NEWEST, PREVIOUS = "state.eqx", "state.previous.eqx"
_DIGEST = 32  # bytes of the checksum at the end of a file


class TrainState(eqx.Module):
    """The state from which a run continues; `model` holds the weights in float32 or wider."""

    model: PyTree
    optimizer: PyTree
    step: Int[Array, ""]


def save_state(directory: Path, state: TrainState) -> None:
    """Save a state and keep the previous one. At every moment at least one file is complete."""
    with replacing(directory / NEWEST, keep=directory / PREVIOUS) as temporary, open(temporary, "wb") as file:
        summed = _Summed(file)
        eqx.tree_serialise_leaves(summed, state)
        file.write(summed.digest())


def load_state(directory: Path, like: TrainState) -> TrainState | None:
    """Load the newest undamaged state; `None` when no state was saved.

    A damaged state is skipped with a warning, and replaced by the previous state.

    **Raises:** `ValueError` when all states are damaged, or belong to another configuration.
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
        reason = first_line(error.__cause__ or error) or type(error).__name__
        raise ValueError(f"{path} does not fit this configuration or is damaged ({reason})") from error
    return state


class _Summed:
    """A file for writing that computes the checksum of its content."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._sum = hashlib.blake2b(digest_size=_DIGEST)

    def write(self, content: bytes) -> int:
        self._sum.update(content)
        return self._file.write(content)

    def digest(self) -> bytes:
        return self._sum.digest()


def _check_sum(file: BinaryIO) -> int:
    """Check a file, and return the offset at which its content ends and its checksum begins.

    **Raises:** `ValueError` when the content does not match the checksum.
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
