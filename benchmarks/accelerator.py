"""Decoding and prompts of one geometry, on a machine that is there for minutes only: what matters most comes first.

The sizes of both measurements take turns, and the figures of each size are stored before the next begins.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from . import decode, prefill
from ._session import Session


def measure(session: Session, batches: list[int], lengths: list[int], tokens: int) -> Iterator[dict[str, Any]]:
    """The figures of `decode` and of `prefill` so far, after each batch and each length.

    **Raises:** `SystemExit` when tokens or logits are wrong.
    """
    parts = decode.measure(session, batches, tokens), prefill.measure(session, lengths)
    for contents in itertools.zip_longest(*parts):
        yield from filter(None, contents)
