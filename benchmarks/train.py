"""A training step, forwards and backwards, against mamba2-jax: tokens per second and memory, each in its own process.

The loss and the norm of its gradient must agree. Processes take turns, `rounds` times.
"""

import statistics
from typing import Any

from ._checkpoint import checkpoint
from ._geometry import GEOMETRIES
from ._process import run
from ._session import Settings, report
from ._training import STEPS, time_steps
from .peers import SUBJECTS, reasons


_AGREE = 1e-4  # relative, of loss and gradient norm


def measure(settings: Settings, batch: int = 4, length: int = 1024, rounds: int = 2) -> dict[str, Any]:
    """All figures.

    **Raises:** `ValueError` for a subject that cannot train, `SystemExit` when losses or gradients differ.
    """
    names = settings.subjects or list(STEPS)
    if unknown := set(names) - set(STEPS):
        raise ValueError(f"cannot train {', '.join(sorted(unknown))}: there are {', '.join(STEPS)}")
    skipped = reasons(names, settings.geometry)
    names = [name for name in names if name not in skipped]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with checkpoint(settings.geometry, settings.checkpoints) as files:
        for _ in range(rounds):
            for name in names:
                task = {"subject": name, "geometry": settings.geometry, "directory": files.directory}
                results[name].append(run(time_steps, **task, batch=batch, length=length, repeats=settings.repeats))
                _check(results)
    rows = [_row(name, found, batch * length) for name, found in results.items()]
    more = {"batch": batch, "length": length, "parameters": GEOMETRIES[settings.geometry].parameters}
    return report("train", settings, rows, skipped=skipped, **more)


def _row(name: str, found: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    seconds = [taken for result in found for taken in result["seconds"]]
    return {
        "subject": name,
        "label": SUBJECTS[name].label.partition(",")[0],
        "tokens_per_s": tokens / statistics.median(seconds),
        "fastest_tokens_per_s": tokens / min(seconds),
        "peak_bytes": max(result["peak_bytes"] for result in found),
        "program_bytes": found[0]["program_bytes"],
        "loss": found[0]["loss"],
        "gradient_norm": found[0]["gradient_norm"],
        "seconds": seconds,
    }


def _check(results: dict[str, list[dict[str, Any]]]) -> None:
    first = next(iter(results.values()))[0]
    for name, found in results.items():
        for result in found:
            for what in ("loss", "gradient_norm"):
                if not abs(result[what] - first[what]) <= _AGREE * abs(first[what]):
                    raise SystemExit(
                        f"{name}: the {what.replace('_', ' ')} is {result[what]:.7g}, and not {first[what]:.7g}: no "
                        "speed is reported for a wrong result."
                    )
