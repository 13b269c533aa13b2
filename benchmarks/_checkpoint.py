"""Checkpoints of a geometry with random weights: speed does not depend on values."""

import contextlib
import functools
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._geometry import GEOMETRIES
from ._process import run


PROMPT = "t1 t2 t3 t4 t5 t6 t7 t8"  # in words of the tokenizer below


class Checkpoint:
    """The random float32 weights of a geometry: as a model on the device, and as files. Each is made when asked for."""

    def __init__(self, geometry: str, folder: Path):
        self.geometry = geometry
        self._folder = folder

    @functools.cached_property
    def model(self) -> Any:
        """The model, made on the device: no weight passes through files or the host's memory."""
        import jax

        import ssmkit

        return ssmkit.build(GEOMETRIES[self.geometry].config, key=jax.random.key(0))

    @property
    def directory(self) -> Path:
        """The folder of the same weights in HF's layout, float32, and of a tokenizer.

        A process of its own writes them unless the model is here already: a TPU serves one process at a time.
        """
        if not (self._folder / "tokenizer.json").is_file():  # what is written last
            if "model" in vars(self):
                self._write()
            else:
                run(write, geometry=self.geometry, folder=self._folder)
        return self._folder

    def _write(self) -> None:
        import tokenizers

        import ssmkit

        ssmkit.save_pretrained(self.model, self._folder)
        size = GEOMETRIES[self.geometry].vocab_size
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"t{i}": i for i in range(size)}, "t0"))
        words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        words.save(str(self._folder / "tokenizer.json"))


@contextlib.contextmanager
def checkpoint(geometry: str, folder: Path | None = None) -> Iterator[Checkpoint]:
    """The checkpoint of a geometry.

    **Arguments:**

    - `geometry`: a key of `GEOMETRIES`.
    - `folder`: the folder that keeps files between runs; with `None`, the block's end deletes them.
    """
    if folder is not None:
        yield Checkpoint(geometry, folder / geometry)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Checkpoint(geometry, Path(temporary) / geometry)


def write(geometry: str, folder: str) -> dict[str, Any]:
    """The files of a checkpoint, as a task of a fresh process."""
    made = Checkpoint(geometry, Path(folder))
    made._write()
    return {}


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration in HF's names; infinities are numbers."""
    names = {"Infinity": math.inf, "-Infinity": -math.inf}
    return json.loads((directory / "config.json").read_text("utf-8"), parse_constant=names.get)


def read_tensors(directory: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor of the checkpoint by its name, as NumPy arrays, one at a time."""
    from safetensors import safe_open

    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as stored:
            for name in stored.keys():
                yield name, stored.get_tensor(name)
