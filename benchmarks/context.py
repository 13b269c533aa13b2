"""The cost of a token, in time and memory, after more and more tokens.

It is constant for a state of constant size. What a cache of keys and values adds is held against its bytes: the time
over that of the shortest context, divided by the time in which the added bytes are read at the bandwidth of the run.
"""

from typing import Any

import numpy as np

from ._check import check_tokens
from ._memory import device_bytes, peak_bytes, reset_peak
from ._session import Session, label, limits
from ._timing import Run, Times, alternate
from .peers.ours import Model


_PART = 4096  # tokens consumed per call on the way to a context
_CHECKED = 1024  # contexts up to here are read again by the reference


def measure(session: Session, contexts: list[int], tokens: int) -> dict[str, Any]:
    """All figures, of ssmkit and its variants only.

    **Raises:** `SystemExit` when generated tokens are not those of a forward pass over the whole context.
    """
    contexts = sorted({max(context, 1) for context in contexts})
    prompt = session.prompts(1, contexts[-1])
    rows, ceilings = [], {}
    probes, rates = limits(session, "matvec")
    for name, subject in session.subjects.items():
        if not isinstance(subject, Model):
            raise ValueError(f"{name} cannot go on from a cache here: `context` measures ssmkit")
        runs: dict[Any, Run] = {}
        peaks = {}
        state: Any = None
        done = 0
        for context in contexts:
            while done < context:
                part = prompt[:, done : min(done + _PART, context)]
                session.tick(f"{name}: {done} of {context} tokens consumed")
                state = subject.begin(part, tokens) if state is None else subject.extend(state, part)
                done += part.shape[1]
            runs[str(context)] = Run(lambda given, state=state, subject=subject: subject.decode(state, tokens))
            if context <= _CHECKED:
                check_tokens(session.reference, prompt[:, :context], {name: runs[str(context)].call(None)})
        shown = lambda note, name=name: session.tick(f"{name}: {note}")
        times = alternate(runs | probes, session.settings.repeats, shown)
        best = ceilings[name] = rates(times)
        for context in contexts:
            reset_peak()
            runs[str(context)].call(None)
            peaks[context] = device_bytes().get("bytes_in_use") or peak_bytes()
        for context in contexts:
            found = {"subject": name, "label": label(name), "context": context, "peak_bytes": peaks[context]}
            rows.append(found | _figures(session, times[str(context)], context, tokens))
            rows[-1] |= _added(rows[-1], rows[-1 - contexts.index(context)], best)
    return session.report("context", rows, tokens=tokens, spread=spread(rows), ceilings=ceilings)


def _figures(session: Session, times: Times, context: int, tokens: int) -> dict[str, Any]:
    return {
        "ms_per_token": 1e3 * times.median / tokens,
        "fastest_ms_per_token": 1e3 * times.fastest / tokens,
        "cache_bytes": session.geometry.cache_bytes(context),
        "seconds": times.seconds,
    }


def _added(row: dict[str, Any], first: dict[str, Any], best: dict[str, float]) -> dict[str, float]:
    """The time that a context adds to the first one's, in times of reading the bytes that it adds to the cache."""
    nbytes = row["cache_bytes"] - first["cache_bytes"]
    if nbytes == 0 or "matvec" not in best:
        return {}
    seconds = (row["ms_per_token"] - first["ms_per_token"]) / 1e3
    return {"added_time_of_bytes": seconds / (nbytes / best["matvec"])}


def spread(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The extra cost of the slowest context over the median context, for every subject."""
    by_subject: dict[str, list[float]] = {}
    for row in rows:
        by_subject.setdefault(row["subject"], []).append(row["ms_per_token"])
    return {name: max(found) / float(np.median(found)) - 1 for name, found in by_subject.items()}
