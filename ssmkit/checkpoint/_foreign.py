"""Files that look like checkpoints but cannot be read: how they are recognised, and the remedy for each."""

import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from safetensors import SafetensorError, safe_open

from ._errors import CheckpointError
from ._stored import StoredTensor


ADAPTER_FILE = "adapter_config.json"

_SOURCE = "Take the checkpoint that it was made of"
_MERGE = "Merge it into its model first (`merge_and_unload()` of peft), and save the whole"
_DEQUANTISE = (
    "Dequantise them with the library that made them, or take the checkpoint that they were made of, and quantise that "
    "here with `quantize=`"
)
_ADAPTER = f"an adapter such as LoRA, and not a model. {_MERGE}"
_GGUF = f"weights in llama.cpp's format (GGUF). {_SOURCE}"
_CONVERT = "Load it with the library that made it, and save it as safetensors"

_BY_START = {
    b"GGUF": _GGUF,
    b"lmgg": _GGUF,
    b"fmgg": _GGUF,
    b"tjgg": _GGUF,
    b"\x89HDF": f"weights of TensorFlow or Keras (HDF5). {_CONVERT}",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file. Run `git lfs pull`, or download the file",
    b"<!DOCTYPE": "a web page in place of the file. Download it again",
    b"<!doctype": "a web page in place of the file. Download it again",
    b"<html": "a web page in place of the file. Download it again",
}
_BY_SUFFIX = {
    ".gguf": _GGUF,
    ".ggml": _GGUF,
    ".onnx": f"a program in the ONNX format. {_SOURCE}",
    ".tflite": f"a program of TensorFlow Lite. {_SOURCE}",
    ".engine": f"a program of TensorRT. {_SOURCE}",
    ".h5": f"weights of TensorFlow or Keras (HDF5). {_CONVERT}",
    ".keras": f"weights of Keras. {_CONVERT}",
    ".pb": f"a program of TensorFlow. {_SOURCE}",
    ".msgpack": f"weights of Flax. {_CONVERT}",
    ".npz": f"weights of NumPy or MLX. {_CONVERT}",
    ".ckpt": f"a checkpoint of a trainer, which holds more than a model. {_CONVERT}",
    ".nemo": f"an archive of NVIDIA NeMo. {_CONVERT}",
    ".ot": f"weights of Rust's `tch`. {_CONVERT}",
    ".distcp": f"a shard of PyTorch's distributed checkpoints. {_CONVERT}",
}
_BY_TENSOR = {
    r"(^|\.)(lora_\w+|ia3_\w+|hada_\w+|lokr_\w+)(\.|$)|^base_model\.model\.": _ADAPTER,
    r"\.(qweight|qzeros|g_idx)$": f"weights quantised by GPTQ or AWQ. {_DEQUANTISE}",
    r"\.(absmax|nested_absmax|quant_map|nested_quant_map|SCB|weight_format)$|\.quant_state\.": (
        f"weights quantised by bitsandbytes. {_DEQUANTISE}"
    ),
    r"\.(weight_packed|weight_shape|weight_zero_point)$": f"weights quantised by compressed-tensors. {_DEQUANTISE}",
    r"\.(weight_scale|weight_scale_inv|weight_scale_2|input_scale)$": f"weights quantised to 8 bits. {_DEQUANTISE}",
    r"\.(W_q)$": f"weights quantised by HQQ. {_DEQUANTISE}",
    r"\.scales$": f"weights quantised by MLX. {_DEQUANTISE}",
}
_MLX = f"weights in the layout of MLX. {_SOURCE}"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_SHARD = re.compile(r"-\d+-of-\d+\.(safetensors|bin|pt|pth)$")
_WRAPPERS = {
    "module.": "`torch.nn.DataParallel` or `DistributedDataParallel`",
    "_orig_mod.": "`torch.compile`",
    "model.": "a module that keeps the model in its field `model`, such as a trainer's",
}


def refuse_foreign_file(path: pathlib.Path) -> None:
    """Refuse a file whose name or first bytes show a kind that cannot be read.

    **Arguments:**

    - `path`: the file, which may be missing.

    **Raises:** `CheckpointError` naming the kind of the file.
    """
    start = b""
    if os.path.isfile(path):  # a name that no file can have is none
        try:
            with open(path, "rb") as file:
                start = file.read(32)
        except OSError:
            return  # reading it will say so
    found = [what for magic, what in _BY_START.items() if start.startswith(magic)]
    found += [_BY_SUFFIX[suffix] for suffix in [path.suffix.lower()] if suffix in _BY_SUFFIX]
    if found:
        raise CheckpointError(f"`{path}` is {found[0]}.")


def foreign_files(names: Iterable[str]) -> Iterator[str]:
    """Describe the files of a folder in which no model was found.

    **Arguments:**

    - `names`: the names of the files.

    **Returns:** a sentence for each file of a known kind.
    """
    names = sorted(names)
    adapters = [ADAPTER_FILE] if ADAPTER_FILE in names else _ADAPTER_WEIGHTS
    for name in names:
        what = _ADAPTER if name in adapters else _BY_SUFFIX.get(pathlib.Path(name).suffix.lower())
        if what is not None:
            yield f"`{name}`: {what}"


def stray_weights(names: Iterable[str]) -> list[str]:
    """The files of a folder that may each hold a complete model under an unusual name, sorted."""
    return sorted(
        name
        for name in names
        if name.lower().endswith(_WEIGHTS) and name not in _ADAPTER_WEIGHTS and not _SHARD.search(name)
    )


def lone_shards(names: Iterable[str]) -> Iterator[str]:
    """A sentence about the shards of a folder that has no index, without which they cannot be read."""
    names = sorted(names)
    shards = [name for name in names if _SHARD.search(name)]
    if shards and not any(name.endswith(".index.json") for name in names):
        index = f"{_SHARD.sub('', shards[0])}{pathlib.Path(shards[0]).suffix}.index.json"
        rest = f" and {len(shards) - 1} more" if len(shards) > 1 else ""
        yield f"`{shards[0]}`{rest}: shards of a model without their index. Put `{index}` beside them"


def foreign_tensors(tensors: Mapping[str, StoredTensor]) -> str | None:
    """Describe a file whose tensors do not fit the model.

    **Arguments:**

    - `tensors`: the tensors, by name.

    **Returns:** the kind of the tensors and the remedy, or `None` when the kind is unknown.
    """
    for pattern, what in _BY_TENSOR.items():
        if any(re.search(pattern, name) for name in tensors):
            return what
    narrow = {tensor.dtype.name for tensor in tensors.values() if tensor.dtype.itemsize == 1}
    if narrow:
        return f"weights quantised to 8 bits or less ({', '.join(sorted(narrow))}). {_DEQUANTISE}"
    return _MLX if any(map(_written_by_mlx, {tensor.path for tensor in tensors.values()})) else None


def wrapper(names: Collection[str], is_known: Callable[[str], bool]) -> str | None:
    """Detect a common prefix of all names, which shows that the model was saved from inside another module.

    **Arguments:**

    - `names`: the names of the tensors.
    - `is_known`: tells whether the model has a tensor of a given name.

    **Returns:** a sentence with the remedy, or `None` when there is no such prefix.
    """
    prefix, makers = "", []
    while begins := [start for start in _WRAPPERS if names and all(name.startswith(prefix + start) for name in names)]:
        prefix += begins[0]
        makers.append(_WRAPPERS[begins[0]])
    if any(map(is_known, names)) or not any(is_known(name.removeprefix(prefix)) for name in names):
        return None
    return (
        f"The names of all tensors begin with `{prefix}`: {' around '.join(makers)} was saved, and not the model in "
        "it. Save the model itself, or rename the tensors"
    )


def _written_by_mlx(path: pathlib.Path) -> bool:
    """Whether a safetensors file says that MLX wrote it. MLX orders the axes of convolutions differently."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("format") == "mlx"
    except (OSError, SafetensorError):
        return False
