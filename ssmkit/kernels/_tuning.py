"""The schedule and chunk size of a kernel: one measured table, and contexts that override it.

Results do not depend on either. The CPU's rows come from `python -m benchmarks chunks`
(`benchmarks/results/chunks_cpu.json`): the working set of a chunk should stay in a core's cache. A TPU's rows have the
fewest cycles in the schedules of v6e's compiler. Those of all other accelerators were measured on an H100. The page
"Platforms" has both.
"""

import contextlib
from typing import NamedTuple

import jax

from .._types import checks_itself, shown, whole
from ._elementwise import ELEMENTWISE
from ._family import Family
from ._per_key import DECAY_PER_KEY
from ._platform import platform
from ._scalar import SCALAR_DECAY
from ._schedule import Schedule, parallel, serial


class Tuning(NamedTuple):
    """The schedule and chunk size that `chunk_scan` uses by default."""

    platform: str
    """`"cpu"`, or any other name for an accelerator."""
    chunk_size: int | None = None
    """Tokens per chunk; `None` takes them from the table."""
    schedule: Schedule | None = None
    """The order of chunks; `None` takes that of the platform."""

    def order(self) -> Schedule:
        """The order in which chunks are computed."""
        if self.schedule is not None:
            return self.schedule
        return serial if self.platform == "cpu" else parallel

    def chunk_size_for(self, family: Family, members: int) -> int:
        """The number of tokens per chunk, if `members` heads share a group's `write` and `read`."""
        if self.chunk_size is not None:
            return self.chunk_size
        return next(size for least, size in _SIZES.get(self.platform, _OTHERS)[family] if members >= least)


# Pairs: the least number of heads per group, and the tokens per chunk for it. Heads that share a group share the scores
# of its chunks, and the number of scores grows with the chunk.
_SIZES = {
    "cpu": {
        SCALAR_DECAY: [(2, 64), (1, 32)],
        DECAY_PER_KEY: [(1, 32)],
        ELEMENTWISE: [(1, 32)],
    },
    "tpu": {
        SCALAR_DECAY: [(1, 128)],
        DECAY_PER_KEY: [(1, 128)],
        ELEMENTWISE: [(1, 32)],
    },
}
_OTHERS = {
    SCALAR_DECAY: [(1, 128)],
    DECAY_PER_KEY: [(1, 64)],
    ELEMENTWISE: [(1, 64)],
}

_chosen = jax.make_user_context(default_value=None)  # part of the key of every jitted function, as `target` is


def tuning() -> Tuning:
    """The tuning in force: that of the default backend, unless `target` or `tuned` overrides it."""
    return Tuning(platform(), *(_chosen.value or ()))


@checks_itself
def tuned(
    *, chunk_size: int | None = None, schedule: Schedule | None = None
) -> contextlib.AbstractContextManager[None]:
    """A context in which kernels use this chunk size or schedule.

    Functions that are called inside the context are traced and compiled again, including jitted functions.

    **Arguments:**

    - `chunk_size`: tokens per chunk; `None` takes it from the table. A recurrence's own `chunk_size` still bounds it.
    - `schedule`: `kernels.serial` or `kernels.parallel`; `None` takes the platform's schedule.

    **Raises:** `ValueError` for a chunk size below 1, or for another schedule.
    """
    if chunk_size is not None and (whole(chunk_size) or 0) < 1:
        raise ValueError(f"`chunk_size` must be an integer, at least 1, got {shown(chunk_size)}.")
    if schedule is not None and not isinstance(schedule, Schedule):
        raise ValueError(f"`schedule` must be `kernels.serial` or `kernels.parallel`, got {shown(schedule)}.")
    return _chosen((chunk_size, schedule))
