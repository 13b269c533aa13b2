"""Checkpoints of a geometry with random weights: speed does not depend on values."""

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._geometry import GEOMETRIES


PROMPT = "t1 t2 t3 t4 t5 t6 t7 t8"  # in words of the tokenizer below


@contextlib.contextmanager
def checkpoint(geometry: str, folder: Path | None = None) -> Iterator[Path]:
    """A folder that holds the geometry's checkpoint in HF's layout, float32, and a tokenizer.

    **Arguments:**

    - `geometry`: a key of `GEOMETRIES`.
    - `folder`: the folder that keeps checkpoints between runs; `None` writes a checkpoint that the block's end deletes.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            _write(geometry, Path(temporary))
            yield Path(temporary)
        return
    directory = folder / geometry
    if not (directory / "tokenizer.json").is_file():  # what is written last
        _write(geometry, directory)
    yield directory


def _write(geometry: str, directory: Path) -> None:
    import jax
    import tokenizers

    import ssmkit
    from ssmkit.models import Mamba2

    config = GEOMETRIES[geometry].config
    ssmkit.save_pretrained(Mamba2(config, key=jax.random.key(0)), directory)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"t{i}": i for i in range(config.vocab_size)}, "t0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(directory / "tokenizer.json"))


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
