"""The same weights in llama.cpp's file format, laid out as its converter does: a module for each architecture."""

from pathlib import Path

import gguf
import numpy as np

from ssmkit.checkpoint import describe

from ..._checkpoint import read_config, read_tensors
from . import falcon_h1, granite, lfm2, mamba2
from ._architecture import Architecture, Config


ARCHITECTURES: dict[str, Architecture] = {
    "falcon_h1": falcon_h1.ARCHITECTURE,
    "granitemoehybrid": granite.ARCHITECTURE,
    "lfm2": lfm2.ARCHITECTURE,
    "mamba2": mamba2.ARCHITECTURE,
}
"""By the `model_type` of HF's configuration."""

_Q8_0 = gguf.GGMLQuantizationType.Q8_0


def convert(directory: Path, storage: str) -> Path:
    """The GGUF file beside the checkpoint, written if it is not there.

    **Raises:** `ValueError` for a model of an architecture that is not in `ARCHITECTURES`.
    """
    path = directory / f"{storage}.gguf"
    if not path.exists():
        if (kind := read_config(directory)["model_type"]) not in ARCHITECTURES:
            raise ValueError(f"no GGUF layout is written for {kind}: there are {', '.join(ARCHITECTURES)}")
        partial = path.with_suffix(".partial")
        _write(ARCHITECTURES[kind], directory, partial, storage)
        partial.rename(path)
    return path


def _write(architecture: Architecture, directory: Path, path: Path, storage: str) -> None:
    config: Config = describe(directory).config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture.arch])
    writer.add_context_length(2**20)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    architecture.describe(writer, config)
    names = gguf.get_tensor_name_map(architecture.arch, config.num_hidden_layers)
    for source, stored in read_tensors(directory):
        if source == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for name, tensor in architecture.lay_out(config, source, np.asarray(stored, np.float32)):
            _add(writer, _named(names, name), np.ascontiguousarray(tensor), storage)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _named(names: gguf.TensorNameMap, name: str) -> str:
    """llama.cpp's name of a tensor, by its package's table; a name of its own stays as it is."""
    if name.startswith(("blk.", "output")):
        return name
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ValueError(f"llama.cpp has no name for the tensor {name}")
    return found


def _add(writer: gguf.GGUFWriter, name: str, tensor: np.ndarray, storage: str) -> None:
    """Write a tensor; as its converter does, matrices are quantised, but no convolutions and norms."""
    other = name.endswith(("norm.weight", "conv.weight", "conv1d.weight"))
    matrix = tensor.ndim == 2 and name.endswith(".weight") and not other
    if storage == "q8_0" and matrix:
        writer.add_tensor(name, gguf.quants.quantize(tensor, _Q8_0), raw_dtype=_Q8_0)
    else:
        writer.add_tensor(name, tensor)
