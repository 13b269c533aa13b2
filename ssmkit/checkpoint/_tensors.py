"""The tensors of a checkpoint, by name, whatever its container; known without reading their data."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ._errors import CheckpointError
from ._stored import StoredTensor
from ._torch_pickle import open_torch_pickle


_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def open_tensors(path: pathlib.Path) -> Mapping[str, StoredTensor]:
    """The tensors of one weight file, or of all the shards that an index lists.

    **Arguments:**

    - `path`: `*.safetensors`, `*.bin` (torch), or an index of either, `*.index.json`.

    **Returns:** one `StoredTensor` per name.

    **Raises:** `CheckpointError` when a file is missing, damaged or of another kind.
    """
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix in (".bin", ".pt", ".pth"):
        return open_torch_pickle(path)
    raise CheckpointError(f"`{path}` is no weight file: expected `.safetensors`, `.bin` or `.index.json`.")


def shard_names(path: pathlib.Path) -> dict[str, str]:
    """Which file of the index's folder holds each tensor.

    **Arguments:**

    - `path`: a `*.index.json` file.

    **Returns:** file names by tensor name.

    **Raises:** `CheckpointError` when the index is malformed or names a file outside its own folder.
    """
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"`{path}` must hold a `weight_map` from tensor names to file names.")
    outside = [
        shard for shard in sorted(set(shards.values())) if set(shard) & set("/\\:\0") or shard in ("", ".", "..")
    ]
    if outside:
        raise CheckpointError(
            f"`{path}` must name files of its own folder.", [f"got the shard {shard!r}" for shard in outside]
        )
    return shards


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object; infinities may be written as `Infinity` or as `{"__float__": "Infinity"}`.

    **Arguments:**

    - `path`: the file.

    **Returns:** its content.

    **Raises:** `CheckpointError` when the file is missing or holds no JSON object.
    """

    def tagged_float(content: dict[str, Any]) -> Any:
        """The float that an object of the one key `__float__` stands for."""
        return float(content["__float__"]) if content.keys() == {"__float__"} else content

    try:
        content = json.loads(path.read_text("utf-8"), object_hook=tagged_float)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"`{path}` cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` must hold a JSON object, got {type(content).__name__}.")
    return content


def _open_index(path: pathlib.Path) -> dict[str, StoredTensor]:
    """As `open_tensors`, for an index: every tensor must lie in the shard that the index says, and nowhere else."""
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    places = shard_names(path)
    for shard in sorted(set(places.values())):
        content = open_tensors(path.with_name(shard))
        listed = {name for name, place in places.items() if place == shard}
        problems += [f"`{name}` is missing in `{shard}`" for name in sorted(listed - content.keys())]
        problems += [f"`{name}` lies in `{shard}` but is not listed so" for name in sorted(content.keys() - listed)]
        tensors.update(content)
    if problems:
        raise CheckpointError(f"`{path}` does not describe its shards.", problems)
    return tensors


def open_safetensors(path: pathlib.Path) -> dict[str, StoredTensor]:
    """As `open_tensors`, for one safetensors file.

    The safetensors library validates the file. Its own arrays would keep every page that was read in memory until the
    file is closed, so the offsets are then taken from the header: a 64-bit length, and that many bytes of JSON.

    ??? cite "Source"

        The format is specified at <https://huggingface.co/docs/safetensors>.
    """
    try:
        with safe_open(path, framework="np"):
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            end = file.seek(0, 2)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"`{path}` is not a readable safetensors file: {error}. Download it again.") from error
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            problems.append(f"`{name}`: got dtype {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
            continue
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = tensor = StoredTensor(path, _DTYPES[entry["dtype"]], tuple(entry["shape"]), start)
        if stop > end or tensor.nbytes != stop - start:
            problems.append(f"`{name}`: {tensor.nbytes} bytes do not lie at {start} to {stop} of {end}")
    if problems:
        raise CheckpointError(f"`{path}` holds tensors that cannot be read.", problems)
    return tensors
