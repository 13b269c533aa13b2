"""Where the model that comes with the package lies."""

import importlib.resources
from pathlib import Path


def default_model_path() -> Path:
    """The folder of the embedded model, which answers where no other model is named.

    **Raises:** `FileNotFoundError` when this installation has none.
    """
    folder = Path(str(importlib.resources.files("ssmkit.models") / "shakespeare"))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no embedded model at {folder}: name a model, or install the package again")
    return folder
