"""The state of a run, on disk: written atomically, so that a kill at any moment loses at most one interval."""

from pathlib import Path
from typing import Any

import equinox as eqx
from jaxtyping import Array, Int, PyTree

from .._files import replacing


class TrainState(eqx.Module):
    """Everything a run continues from."""

    model: PyTree
    optimizer: PyTree
    step: Int[Array, ""]


def save_state(path: Path, state: TrainState) -> None:
    """Write beside the target, then rename over it."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        eqx.tree_serialise_leaves(file, state)


def load_state(path: Path, like: TrainState) -> Any:
    """Read a state of the same structure.

    **Raises:** `ValueError` when the file is damaged or belongs to another configuration.
    """
    try:
        with open(path, "rb") as file:
            state = eqx.tree_deserialise_leaves(file, like)
            if file.read(1):
                raise ValueError("it holds more than this configuration has")
    except Exception as error:  # equinox and numpy raise many kinds here
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} does not fit this configuration or is damaged ({reason}). Train into an empty directory, or "
            "restore the configuration it was made with."
        ) from error
    return state
