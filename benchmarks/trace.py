"""Profiles of a prompt and of decoding by `jax.profiler`: the kernels that take the time, and a zip file of all."""

import collections
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from ._session import Session
from .peers.ours import Model


_MOST = 12  # kernels of each program are listed


def measure(session: Session, length: int, tokens: int, zipped: Path | None) -> dict[str, Any]:
    """The kernels with the largest share of the time of each program.

    **Arguments:**

    - `length`: the tokens of the prompt that is profiled.
    - `tokens`: the number of tokens that are decoded under the profiler.
    - `zipped`: the zip file for the profiles, which TensorBoard and XProf show.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, subject in session.subjects.items():
            if not isinstance(subject, Model):
                raise ValueError(f"{name} is not profiled: `trace` measures ssmkit")
            prompt = session.prompts(1, length)
            start = subject.begin(prompt[:, :16], tokens)
            programs = {
                "prompt": lambda subject=subject, prompt=prompt: subject.prefill(prompt),
                "decoding": lambda subject=subject, start=start: subject.decode(start, tokens),
            }
            for program, run in programs.items():
                session.tick(f"{name}: {program}")
                run()
                place = Path(folder) / name / program
                with jax.profiler.trace(str(place)):
                    run()
                rows += [{"subject": name, "program": program, **kernel} for kernel in _kernels(place)]
        if zipped is not None:
            shutil.make_archive(str(zipped.with_suffix("")), "zip", folder)
    return session.report("trace", rows, length=length, tokens=tokens)


def _kernels(folder: Path) -> list[dict[str, Any]]:
    """The largest sums of times by name, over the device's lines of a profile; on a CPU, over XLA's threads."""
    seconds: dict[str, float] = collections.defaultdict(float)
    counts: dict[str, int] = collections.Counter()
    for path in folder.rglob("*.xplane.pb"):
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        for plane in [plane for plane in planes if plane.name.startswith("/device:")] or planes:
            for line in plane.lines:
                if line.name not in ("XLA Modules", "Steps", "python"):
                    for event in line.events:
                        seconds[event.name] += event.duration_ns / 1e9
                        counts[event.name] += 1
    total = sum(seconds.values())
    largest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:_MOST]
    return [
        {"kernel": name, "count": counts[name], "seconds": [seconds[name]], "share": seconds[name] / total}
        for name in largest
    ]
