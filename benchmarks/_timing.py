"""The only timing loop. Every repeat runs every subject once, so that any disturbance affects all subjects."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


# The pause between two runs: other libraries' threads spin for a while after their last product.
SETTLE = 0.05


class Run(NamedTuple):
    """A timed run: `call`, applied to the result of `setup`. The call ends when its result is in host memory."""

    call: Callable[[Any], Any]
    setup: Callable[[], Any] = lambda: None


class Times(NamedTuple):
    """The seconds of every repeat of one subject."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The median, which is reported."""
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """The fastest repeat, which is shown beside the median: the time without disturbance."""
        return min(self.seconds)


def timed(run: Run) -> tuple[float, Any]:
    """The seconds of one call, and its result."""
    given = run.setup()
    time.sleep(SETTLE)
    start = time.perf_counter()
    result = run.call(given)
    return time.perf_counter() - start, result


def alternate(
    runs: Mapping[Any, Run], repeats: int, tick: Callable[[str], None] = lambda note: None, *, warm: bool = False
) -> dict[Any, Times]:
    """The times of every subject.

    **Arguments:**

    - `runs`: the subjects.
    - `repeats`: the number of repeats of each subject.
    - `tick`: called before each run with its name, for a progress bar.
    - `warm`: whether every subject has run before, so that everything is compiled. Otherwise it runs once untimed.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats if warm else repeats + 1):
        for name, run in runs.items():
            tick(name if isinstance(name, str) else " ".join(map(str, name)))
            taken, _ = timed(run)
            if warm or repeat > 0:
                seconds[name].append(taken)
    return {name: Times(taken) for name, taken in seconds.items()}
