"""Broken copies of a file."""

import pathlib
import random
from collections.abc import Callable, Mapping

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
