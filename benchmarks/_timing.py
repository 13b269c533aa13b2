"""The only loop that takes times: every repeat runs every subject once, so that a busy machine is busy for all."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


# Between two runs: another library's threads wait for work by spinning for a while after its last product.
SETTLE = 0.05


class Run(NamedTuple):
    """What is timed: `call`, given what `setup` returns. The call ends when its result is in host memory."""

    call: Callable[[Any], Any]
    setup: Callable[[], Any] = lambda: None


class Times(NamedTuple):
    """Seconds of every repeat of one subject."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """What is reported."""
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """Shown beside it: what the machine does when nothing disturbs it."""
        return min(self.seconds)


def timed(run: Run) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    given = run.setup()
    time.sleep(SETTLE)
    start = time.perf_counter()
    result = run.call(given)
    return time.perf_counter() - start, result


def alternate(
    runs: Mapping[Any, Run], repeats: int, tick: Callable[[str], None] = lambda note: None, *, warm: bool = False
) -> dict[Any, Times]:
    """Times of every subject.

    **Arguments:**

    - `runs`: the subjects.
    - `repeats`: of each.
    - `tick`: called before each run with its name, for a progress bar.
    - `warm`: every subject has run before, so that everything is compiled; otherwise it runs once untimed.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats if warm else repeats + 1):
        for name, run in runs.items():
            tick(name if isinstance(name, str) else " ".join(map(str, name)))
            taken, _ = timed(run)
            if warm or repeat > 0:
                seconds[name].append(taken)
    return {name: Times(taken) for name, taken in seconds.items()}
