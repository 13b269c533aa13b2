"""Cached against uncached generation, in the paper's protocol: the gain by the cache at a total length.

Without a cache, every token costs a forward pass over the whole prefix (padded to a multiple of `PAD`; logits after its
last token only). This cost is measured at some lengths and interpolated linearly between them. The cost of a total
length is the sum over all prefixes. With a cache, it is the cost of the prompt plus that of every step. The mean cost
of a step is measured over `tokens` steps; it does not depend on the position, as `context` shows. The first few tokens
of both are compared.
"""

from typing import Any

import numpy as np

from ._check import check_tokens
from ._session import Session, label
from ._timing import Run, alternate
from .peers import Subject


PROMPT = 16
PAD = 64
_CHECKED = 4


def measure(session: Session, totals: list[int], tokens: int) -> dict[str, Any]:
    """All figures.

    **Raises:** `SystemExit` when a subject generates other tokens without a cache than with it.
    """
    lengths = sorted({padded(PROMPT), *map(padded, totals)})
    prompts = session.prompts(1, max(lengths))
    rows = []
    for name, subject in session.subjects.items():
        session.tick(f"{name}: the same tokens with and without a cache")
        _check(session, name)
        runs = _runs(subject, prompts, lengths, tokens)
        shown = lambda note, name=name: session.tick(f"{name}: {note}")
        times = alternate(runs, session.settings.repeats, shown)
        costs = [times[str(n)].median for n in lengths]
        step = times["decode"].median / tokens
        for total in totals:
            uncached = sum(np.interp(padded(n), lengths, costs) for n in range(PROMPT, total))
            cached = times["prompt"].median + (total - PROMPT) * step
            rows.append(
                {
                    "subject": name,
                    "label": label(name),
                    "total": total,
                    "cached_s": cached,
                    "uncached_s": float(uncached),
                    "ratio": float(uncached) / cached,
                    "cached_tokens_per_s": (total - PROMPT) / cached,
                    "uncached_tokens_per_s": (total - PROMPT) / float(uncached),
                    "forward_ms": {str(n): 1e3 * cost for n, cost in zip(lengths, costs, strict=True)},
                    "seconds": {key: value.seconds for key, value in times.items()},
                }
            )
    return session.report("uncached", rows, prompt=PROMPT, pad=PAD)


def _runs(subject: Subject, prompts: np.ndarray, lengths: list[int], tokens: int) -> dict[str, Run]:
    """A forward pass over each length, and the two parts of cached generation."""
    short = prompts[:, :PROMPT]
    runs = {str(n): Run(lambda given, n=n: subject.prefill(prompts[:, :n])) for n in lengths}
    runs["prompt"] = Run(lambda given: subject.prefill(short))
    runs["decode"] = Run(lambda start: subject.decode(start, tokens), lambda: subject.begin(short, tokens))
    return runs


def padded(length: int) -> int:
    """The length to which a prefix is padded."""
    return -(-length // PAD) * PAD


def _check(session: Session, name: str) -> None:
    subject = session.subjects[name]
    prompt = session.prompts(1, PROMPT)
    cached = subject.decode(subject.begin(prompt, _CHECKED), _CHECKED)
    check_tokens(session.reference, prompt, {name: cached})
    sequence = prompt
    for i in range(_CHECKED):
        token = subject.prefill(sequence)[:, : session.geometry.vocab_size].argmax(-1)
        if token[0] != cached[0, i]:
            raise SystemExit(
                f"{name} generates {token[0]} without a cache and {cached[0, i]} with it, as token {i}: no speed is "
                "reported for different work."
            )
        sequence = np.concatenate([sequence, token[:, None]], axis=1).astype(prompt.dtype)
