"""What the processes of a run on many hosts agree on. In a run of one process, every function is trivial."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from .._sharding import fetched


Tree = TypeVar("Tree")


class AllStopped(KeyboardInterrupt):
    """All processes of a run were told to end, and have completed the same step."""


def many() -> bool:
    """Whether several processes take part in the run (`jax.distributed.initialize`)."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes what is written once: records, tables, and the model."""
    return jax.process_index() == 0


def once(run: Callable[[], Any]) -> Any:
    """Run a function in the first process only.

    **Arguments:**

    - `run`: returns a JSON value.

    **Returns:** what it returns there, in every process.

    **Raises:** the `ValueError` or `OSError` that it raises there, in every process.
    """
    if not many():
        return run()
    failure, answer = None, None
    if is_first():
        try:
            answer = {"value": run()}
        except OSError as error:
            failure, answer = error, {"system": [error.errno, error.strerror or str(error), error.filename]}
        except ValueError as error:
            failure, answer = error, {"problem": str(error)}
    answer = json.loads(_told(json.dumps(answer, default=str)))
    if failure is not None:
        raise failure
    if "system" in answer:
        raise OSError(*answer["system"])
    if "problem" in answer:
        raise ValueError(answer["problem"])
    return answer["value"]


def check_alike(text: str) -> None:
    """Check that all processes describe their run alike.

    **Raises:** `ValueError` in every process that was given something else than the first.
    """
    if many() and _told(text) != text:
        raise ValueError(
            f"process {jax.process_index()} was given other texts, settings or files than process 0: give all "
            "processes of a run the same."
        )
    once(lambda: None)  # nobody starts before everybody has compared


def whole(tree: Tree) -> Tree:
    """The tree with whole arrays that this process can read. On many hosts, they are NumPy arrays."""
    return jax.tree.map(lambda leaf: fetched(leaf) if isinstance(leaf, jax.Array) else leaf, tree) if many() else tree


def asked_to_stop(done: int) -> bool:
    """Whether a process was told to end (SIGTERM), and all have now completed the same step after that.

    **Arguments:**

    - `done`: the number of steps since these processes started, in which JAX counts. A signal that comes before the
        first step stops them after it.
    """
    from jax.experimental import multihost_utils

    return many() and multihost_utils.reached_preemption_sync_point(done)


def _told(text: str) -> str:
    """The text of the first process."""
    from jax.experimental import multihost_utils

    content = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    buffer = np.zeros(size, np.uint8)
    if is_first():
        buffer[:] = content
    return bytes(multihost_utils.broadcast_one_to_all(buffer)).decode()
