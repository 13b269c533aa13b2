"""Writing of models as checkpoints."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import safetensors.numpy

from .._arguments import check_is, path_of
from .._config import checks_itself
from .._files import replacing_files, writing
from .._model_config import LanguageModelConfig
from .._scan_layers import unscanned
from ..layers._apart import together
from ..layers._matrix import Int8Matrix
from ..text._tokenizer import Tokenizer
from ._dialect import Dialect, architectures, architectures_of
from ._errors import CheckpointError
from ._skeleton import array_path
from ._torch_pickle import write_torch_pickle


@checks_itself
def save_pretrained(
    model: Any, directory: str | os.PathLike[str], *, format: str | None = None, tokenizer: Tokenizer | None = None
) -> None:
    """Write a model so that `from_pretrained` restores it bit for bit, and other software can read it.

    All files are written completely beside their final places and then moved there. An interrupted save therefore never
    leaves half a file, and a failed save leaves the previous files.

    **Arguments:**

    - `model`: a model of a known architecture.
    - `directory`: the folder, created if necessary; files of the same names are replaced.
    - `format`: a dialect of the model's architecture, such as `"hf"` or `"state-spaces"`; `None` for the first dialect.
    - `tokenizer`: the tokenizer of the model, written beside it with its chat template and its named special tokens.
        The command line, and `Tokenizer.from_file(directory)`, find it there. Without it, the command line needs
        `--tokenizer`.

    **Raises:** `CheckpointError` when the architecture is not known, or the format cannot express the model;
    `OSError` naming the file that cannot be written, such as on a full disk.
    """
    directory = path_of("directory", directory, CheckpointError)
    if tokenizer is not None:
        check_is("tokenizer", tokenizer, Tokenizer, "Read one with `Tokenizer.from_file`.", CheckpointError)
    check_writable(model, format=format)
    dialect, write_config = _layout(model, format)
    arrays = _arrays(model)
    layout = dialect.layout(model.config, arrays)
    tensors: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        layout.sources[path].write(array, tensors)
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    if dialect.writes_copies:
        for name, original in dialect.copies.items():
            tensors.setdefault(name, tensors[original])
    largest = max(tensors.values(), key=lambda tensor: tensor.nbytes)
    config = write_config(model.config, largest.dtype.name)

    weights = dialect.weight_files[0]
    save_weights = _save_safetensors if weights.endswith(".safetensors") else write_torch_pickle
    writers: dict[str, Callable[[pathlib.Path], object]] = {
        dialect.config_file: lambda path: _write_text(path, json.dumps(config, indent=2) + "\n"),
        weights: lambda path: save_weights(path, tensors),
    }
    if tokenizer is not None:
        for name, content in tokenizer.files().items():
            writers[name] = lambda path, content=content: path.write_bytes(content)
    with replacing_files(directory, writers) as paths:
        for name, write in writers.items():
            with writing(directory / name):
                write(paths[name])


def _write_text(path: pathlib.Path, text: str) -> None:
    path.write_text(text, "utf-8")


def _save_safetensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


@checks_itself
def check_writable(model: Any, *, format: str | None = None) -> None:
    """Check that `save_pretrained` could write a model, before work such as training starts.

    **Arguments:**

    - `model`, `format`: as for `save_pretrained`.

    **Raises:** `CheckpointError`, as `save_pretrained`.
    """
    dialect, write_config = _layout(model, format)
    write_config(model.config, "float32")
    forms = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), eqx.filter(model, _is_array))
    arrays = _by_path(jax.eval_shape(lambda model: together(unscanned(model)), forms))
    dialect.layout(model.config, arrays).tensor_shapes(arrays)


def _arrays(model: Any) -> dict[str, np.ndarray]:
    """Every array of the model on the host, with its path in the model as it is on one device.

    Layers of stacked arrays have paths of their own, and fused layers are whole.
    """
    return _by_path(together(unscanned(jax.tree.map(np.asarray, eqx.filter(model, _is_array))), np.concatenate))


def _by_path(model: Any) -> dict[str, Any]:
    return {array_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]}


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _is_int8(node: Any) -> bool:
    return isinstance(node, Int8Matrix)


@checks_itself
def _layout(model: Any, format: str | None) -> tuple[Dialect, Callable[[Any, str], dict[str, Any]]]:
    """The dialect of this name in the model's architecture, and its function that writes configurations."""
    if any(map(_is_int8, jax.tree.leaves(model, is_leaf=_is_int8))):
        raise CheckpointError(
            "`model` is quantised to int8, which no format here can express. Save what it was made of."
        )
    known, same = architectures_of(model), [each for each in architectures() if type(model) is each.model]
    if not same:
        raise CheckpointError(
            f"`{type(model).__name__}` is of no known architecture. Write the model as a `ssmkit.LanguageModelConfig`, "
            "or add an architecture by an entry point of the group `ssmkit.architectures`."
        )
    if not known:
        described = any(architecture.config is LanguageModelConfig for architecture in same)
        name = (LanguageModelConfig if described else same[0].config).__name__
        raise CheckpointError(
            f"This `{type(model).__name__}` was not made of a configuration, so no file can say what it is. Write it "
            f"as a `{name}` and make it with `ssmkit.build`."
        )
    for dialect in known[0].dialects:
        if format in (None, dialect.name) and dialect.write_config is not None:
            return dialect, dialect.write_config
    formats = [dialect.name for dialect in known[0].dialects if dialect.write_config is not None]
    raise CheckpointError(f"`format` must be one of {formats} for {known[0].name}, got {format!r}.")
