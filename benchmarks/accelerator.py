"""Decoding and prompts of one geometry, on a machine that is there for minutes only: what matters most comes first.

All programs are compiled side by side before the first is measured. The sizes of both measurements take turns, and the
figures of each size are stored before the next begins.
"""

import contextlib
import fcntl
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ssmkit._shown import first_line

from . import decode, prefill
from ._session import Session
from .peers import Subject
from .peers.ours import Model


def measure(
    session: Session, batches: list[int], lengths: list[int], tokens: int, turn: Path | None = None
) -> Iterator[dict[str, Any]]:
    """The figures of `decode` and of `prefill` so far, after each batch and each length.

    **Arguments:**

    - `session`: the loaded subjects.
    - `batches`, `tokens`: the sizes of `decode`.
    - `lengths`: the sizes of `prefill`.
    - `turn`: a file that one process at a time locks to measure. Beside it, the process leaves another file as soon as
        it is ready to measure.

    **Raises:** `SystemExit` when tokens or logits are wrong.
    """
    _prepare(session, batches, lengths, tokens)
    parts = decode.measure(session, batches, tokens), prefill.measure(session, lengths)
    with contextlib.nullcontext() if turn is None else _alone(turn):
        for contents in itertools.zip_longest(*parts):
            yield from filter(None, contents)


def _prepare(session: Session, batches: list[int], lengths: list[int], tokens: int) -> None:
    """Run everything once. Threads compile ssmkit's programs; peers follow, which may not run beside anything.

    A peer that fails is measured no more, and the results say why.
    """
    session.tick("all programs, side by side")

    def runs(subject: Subject) -> Iterator[Callable[[], Any]]:
        for batch in batches:
            prompt = session.prompts(batch, decode.PROMPT)
            yield lambda prompt=prompt: subject.decode(subject.begin(prompt, tokens), tokens)
        for length in lengths:
            prompt = session.prompts(1, length)
            yield lambda prompt=prompt: subject.prefill(prompt)

    ours = [run for subject in session.subjects.values() if isinstance(subject, Model) for run in runs(subject)]
    ours.append(lambda: session.reference.last_logits(session.prompts(1, 1)[0]))
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda run: run(), ours))
    for name, subject in list(session.subjects.items()):
        if not isinstance(subject, Model):
            try:
                for run in runs(subject):
                    run()
            except Exception as error:  # of any kind: it is another project's
                session.skipped[name] = f"failed: {first_line(error)}"
                del session.subjects[name]


@contextlib.contextmanager
def _alone(turn: Path) -> Iterator[None]:
    turn.with_name(f"ready-{os.getpid()}").touch()
    with turn.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
