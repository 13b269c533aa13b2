"""Broken copies of a file, and a disk that is full."""

import contextlib
import pathlib
import random
from collections.abc import Callable, Iterator, Mapping

import pytest

from ssmkit.checkpoint import CheckpointError, StoredTensor


def refused(path: pathlib.Path, open: Callable[[pathlib.Path], Mapping[str, StoredTensor]], *, flips: int) -> int:
    """How many broken copies of a file `open` refuses: every truncation, and `flips` random changes of every byte.

    The other copies are read whole; anything raised but a `CheckpointError` comes through.
    """
    content = path.read_bytes()
    generator = random.Random(0)
    damaged = [content[:length] for length in range(len(content))]
    for _ in range(flips):
        for position in range(len(content)):
            flip = generator.randrange(1, 256)
            damaged.append(content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :])
    count = 0
    for bad in damaged:
        path.write_bytes(bad)
        try:
            for value in open(path).values():
                value.read()
        except CheckpointError:
            count += 1
    return count


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow past `limit` bytes: the system refuses to write as it does when a disk is full."""
    resource = pytest.importorskip("resource", reason="no limits on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
