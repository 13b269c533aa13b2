"""Which schedule and chunk size a kernel uses: one measured table, and how to choose otherwise. Results do not depend
on either.

The CPU's rows come from `python -m benchmarks chunks` (`benchmarks/results/chunks_cpu.json`): what a chunk computes
should stay in a core's cache. Elsewhere chunks are long and side by side; that has not been measured yet.
"""

import contextlib
from typing import NamedTuple

import jax

from .._types import checks_itself, shown, whole
from ._family import Family
from ._schedule import Schedule, parallel, serial


class Tuning(NamedTuple):
    """What `chunk_scan` is to use wherever it is not told."""

    platform: str
    """`"cpu"`, or any other name for an accelerator."""
    chunk_size: int | None = None
    """`None`: from the table."""
    schedule: Schedule | None = None
    """`None`: from the table."""

    def order(self) -> Schedule:
        """The order in which chunks are computed."""
        if self.schedule is not None:
            return self.schedule
        return serial if self.platform == "cpu" else parallel

    def chunk_size_for(self, family: Family, members: int) -> int:
        """Tokens per chunk, where so many heads share a group's `write` and `read`."""
        if self.chunk_size is not None:
            return self.chunk_size
        if self.platform != "cpu":
            return _ACCELERATOR
        return next(size for least, size in _CPU[family.name] if members >= least)


# From that many heads per group on, so many tokens per chunk. Heads that share a group share the scores of its chunks,
# whose number grows with the chunk.
_CPU = {
    "K1, one decay per head": [(2, 64), (1, 32)],
    "K2, one decay per key": [(1, 32)],
    "K3, elementwise": [(1, 32)],
}
_ACCELERATOR = 128
_PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")

# Part of the key of every jitted function: under another choice it is traced anew.
_chosen = jax.make_user_context(default_value=None)


def tuning() -> Tuning:
    """What is in force: for the default backend, unless `target` or `tuned` says otherwise."""
    return _chosen.value or Tuning(jax.default_backend())


@checks_itself
def target(platform: str) -> contextlib.AbstractContextManager[None]:
    """Within this context kernels are traced as another platform wants them, to be exported for it.

    **Arguments:**

    - `platform`: `"cpu"`, `"gpu"`, `"cuda"`, `"rocm"` or `"tpu"`.

    **Raises:** `ValueError` for another name.
    """
    if platform not in _PLATFORMS:
        raise ValueError(f"`platform` must be one of {', '.join(_PLATFORMS)}, got {platform!r}.")
    return _chosen(tuning()._replace(platform=platform))


@checks_itself
def tuned(
    *, chunk_size: int | None = None, schedule: Schedule | None = None
) -> contextlib.AbstractContextManager[None]:
    """Within this context kernels use this chunk size or schedule, where no argument names another.

    Functions that are called within it are traced and compiled anew, jitted ones too.

    **Arguments:**

    - `chunk_size`: tokens per chunk; `None` leaves it to the table. A recurrence's own `chunk_size` still bounds it.
    - `schedule`: `kernels.serial` or `kernels.parallel`; `None` leaves it to the platform.

    **Raises:** `ValueError` for a chunk size below 1.
    """
    if chunk_size is not None and (whole(chunk_size) or 0) < 1:
        raise ValueError(f"`chunk_size` must be an integer, at least 1, got {shown(chunk_size)}.")
    return _chosen(tuning()._replace(chunk_size=chunk_size, schedule=schedule))
