"""Tokens of a prompt per second, from an empty cache to the logits after the last token, all on the same weights."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ._check import check_logits, tolerance
from ._session import Session, label, limits
from ._timing import Run, Times, alternate
from .peers import SUBJECTS


def measure(session: Session, lengths: list[int], batch: int = 1) -> Iterator[dict[str, Any]]:
    """All figures so far, after each length.

    **Raises:** `SystemExit` when a subject's logits are wrong.
    """
    probes, rates = limits(session)
    rows, ceilings = [], {}
    for i, length in enumerate(lengths):
        prompt = session.prompts(batch, length)
        names = list(session.subjects)
        runs: dict[Any, Run] = {name: _run(session, name, prompt) for name in names}
        found = {}
        for name, run in runs.items():
            session.tick(f"{length} tokens: what {name} computes")
            found[name] = run.call(run.setup())
        expected = np.stack([session.reference.last_logits(row) for row in prompt])
        errors = check_logits(expected, found, {name: tolerance(name) for name in names})
        times = alternate(
            runs | probes,
            session.settings.repeats,
            lambda note, n=length: session.tick(f"{n} tokens: {note}"),
            warm=not probes,
        )
        best = ceilings[str(length)] = rates(times)
        for name in names:
            rows.append(
                {
                    "subject": name,
                    "label": label(name),
                    "length": length,
                    "batch": batch,
                    "error": errors[name],
                    **_figures(session, name, length, batch, times[name], best),
                }
            )
        rows.sort(key=lambda row: row["length"])
        yield session.report("prefill", rows, ceilings=ceilings, left=lengths[i + 1 :])


def _run(session: Session, name: str, prompt: np.ndarray) -> Run:
    subject = session.subjects[name]
    return Run(lambda given: subject.prefill(prompt))


def _figures(session: Session, name: str, length: int, batch: int, times: Times, best: dict) -> dict[str, Any]:
    rate = session.geometry.prefill_flops(length, batch) / times.median
    figures: dict[str, Any] = {
        "ms": 1e3 * times.median,
        "fastest_ms": 1e3 * times.fastest,
        "tokens_per_s": batch * length / times.median,
        "projection_gflops": rate / 1e9,
        "seconds": times.seconds,
    }
    if best:
        narrow = SUBJECTS[name].storage == "bfloat16" and "matmul_bfloat16" in best
        figures["mfu"] = rate / best["matmul_bfloat16" if narrow else "matmul"]
    if "sheet_matmul" in best:
        figures["mfu_of_data_sheet"] = rate / best["sheet_matmul"]
    return figures
