"""Files of hybrids that this package has written, with some of their keys changed. Needs no PyTorch."""

import json
import pathlib
import shutil
from collections.abc import Collection
from typing import Any

import pytest
from hybrid_variants import hybrid

import ssmkit


def saved_hybrid(name: str) -> Any:
    """A fixture: the folder in which the model of a variant is saved, once for a module."""

    @pytest.fixture(scope="module")
    def saved(tmp_path_factory) -> pathlib.Path:
        directory = tmp_path_factory.mktemp("saved")
        ssmkit.save_pretrained(hybrid(name), directory)
        return directory

    return saved


def edited(saved: pathlib.Path, directory: pathlib.Path, without: Collection[str] = (), **changes: Any) -> pathlib.Path:
    """A copy in another folder, with other values of some keys, and without others."""
    content = json.loads((saved / "config.json").read_text()) | changes
    kept = {name: value for name, value in content.items() if name not in without}
    (directory / "config.json").write_text(json.dumps(kept))
    shutil.copyfile(saved / "model.safetensors", directory / "model.safetensors")
    return directory
