"""The path of the model that comes with the package."""

import importlib.resources
from pathlib import Path


def default_model_path() -> Path:
    """The folder of the embedded model, which commands use if no other model is named.

    **Raises:** `FileNotFoundError` when this installation does not contain it.
    """
    folder = Path(str(importlib.resources.files("ssmkit.models") / "shakespeare"))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no embedded model at {folder}: name a model, or install the package again")
    return folder
