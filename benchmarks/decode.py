"""Time per decoded token: greedy, after a short prompt that is not timed, every subject on the same weights."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ._check import check_tokens
from ._environment import cache_bytes, on_cpu
from ._geometry import Geometry
from ._session import Session, label, limits
from ._timing import Run, Times, alternate
from .peers import SUBJECTS


PROMPT = 16


def measure(session: Session, batches: list[int], tokens: int) -> Iterator[dict[str, Any]]:
    """All figures so far, after each batch.

    **Raises:** `SystemExit` when a subject's tokens are wrong.
    """
    probes, rates = limits(session)
    rows, ceilings = [], {}
    for i, batch in enumerate(batches):
        prompt = session.prompts(batch, PROMPT)
        new = {name: max(tokens // SUBJECTS[name].patience, 1) if on_cpu() else tokens for name in session.subjects}
        names = [name for name in new if batch <= SUBJECTS[name].most_batch or not on_cpu()]
        runs: dict[Any, Run] = {name: _run(session, name, prompt, new[name]) for name in names}
        found = {}
        for name, run in runs.items():
            session.tick(f"batch {batch}: what {name} generates")
            found[name] = run.call(run.setup())
        errors = check_tokens(session.reference, prompt, found)
        shown = lambda note, batch=batch: session.tick(f"batch {batch}: {note}")
        times = alternate(runs | probes, session.settings.repeats, shown, warm=not probes)
        best = ceilings[str(batch)] = rates(times)
        for name in names:
            rows.append(
                {
                    "subject": name,
                    "label": label(name),
                    "batch": batch,
                    "tokens": new[name],
                    "distinct_tokens": len(np.unique(found[name])),
                    "error": errors[name],
                    **_figures(session.geometry, name, batch, new[name], times[name], best),
                }
            )
        rows.sort(key=lambda row: row["batch"])
        yield session.report("decode", rows, prompt=PROMPT, ceilings=ceilings, left=batches[i + 1 :])


def _run(session: Session, name: str, prompt: np.ndarray, new: int) -> Run:
    subject = session.subjects[name]
    return Run(lambda start: subject.decode(start, new), lambda: subject.begin(prompt, new))


def _figures(geometry: Geometry, name: str, batch: int, tokens: int, times: Times, best: dict) -> dict[str, Any]:
    storage = SUBJECTS[name].storage
    nbytes = geometry.step_bytes(batch, storage, PROMPT)
    rate = nbytes * tokens / times.median
    figures: dict[str, Any] = {
        "ms_per_step": 1e3 * times.median / tokens,
        "fastest_ms_per_step": 1e3 * times.fastest / tokens,
        "tokens_per_s": batch * tokens / times.median,
        "bytes_per_step": nbytes,
        "gb_per_s": rate / 1e9,
        "seconds": times.seconds,
    }
    ceilings = {}
    if best:
        ceilings["hbu"] = max(value for kind, value in best.items() if kind.startswith("matvec"))
    if "sheet_matvec" in best:
        ceilings["hbu_of_data_sheet"] = best["sheet_matvec"]
    in_cache = nbytes <= cache_bytes()  # then memory bounds nothing, and a share of its bandwidth means nothing
    return figures | {name: None if in_cache else rate / ceiling for name, ceiling in ceilings.items()}
