"""The state of a run, on disk: written atomically, so that a kill at any moment loses at most one interval."""

import os
from pathlib import Path
from typing import Any

import equinox as eqx
from jaxtyping import Array, Int, PyTree


class TrainState(eqx.Module):
    """Everything a run continues from."""

    model: PyTree
    optimizer: PyTree
    step: Int[Array, ""]


def save_state(path: Path, state: TrainState) -> None:
    """Write beside the target, then rename over it."""
    temporary = path.with_suffix(".partial")
    with open(temporary, "wb") as file:
        eqx.tree_serialise_leaves(file, state)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_state(path: Path, like: TrainState) -> Any:
    """Read a state of the same structure.

    **Raises:** `ValueError` when the file is damaged or belongs to another configuration.
    """
    try:
        return eqx.tree_deserialise_leaves(path, like)
    except Exception as error:  # equinox and numpy raise many kinds here
        raise ValueError(
            f"{path} does not fit this configuration or is damaged ({error}). Train into an empty directory, or restore "
            "the configuration it was made with."
        ) from error
