"""The tensors of a checkpoint by name, for every kind of file. Their data is not read."""

import json
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from .._reading import open_regular
from .._shown import shown
from ._errors import CheckpointError
from ._json import LARGEST, read_json
from ._stored import StoredTensor
from ._torch_pickle import open_torch_pickle


_TORCH_SUFFIXES = (".bin", ".pt", ".pth")
_ENOUGH = 1000  # problems of one index; there may be many large shards
_LONGEST_NAME = 200  # characters of a shard's name; systems take 255 bytes
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
    return _open_index(path) if path.name.endswith(".index.json") else _open_weights(path)


def _open_weights(path: pathlib.Path) -> dict[str, StoredTensor]:
    """As `open_tensors`, for one weight file."""
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix in _TORCH_SUFFIXES:
        return open_torch_pickle(path)
    raise CheckpointError(f"`{path}` is no weight file: expected `.safetensors`, `.bin` or `.index.json`.")


def shard_names(path: pathlib.Path) -> dict[str, str]:
    """Read an index: which file of its folder holds each tensor.

    **Arguments:**

    - `path`: a `*.index.json` file.

    **Returns:** file names by tensor name.

    **Raises:** `CheckpointError` when the index is malformed, or names a file outside its own folder or an index.
    """
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"`{path}` must hold a `weight_map` from tensor names to file names.")
    problems = []
    for shard in sorted(set(shards.values())):
        if set(shard) & set("/\\:\0") or shard in ("", ".", "..") or len(shard) > _LONGEST_NAME:
            problems.append(f"got the shard {shown(shard)}, which is no file of its own folder")
        elif not shard.endswith((".safetensors", *_TORCH_SUFFIXES)):
            problems.append(f"got the shard {shown(shard)}, which is no weight file: an index names no other index")
    if problems:
        raise CheckpointError(f"`{path}` must name files of its own folder.", problems)
    return shards


def _open_index(path: pathlib.Path) -> dict[str, StoredTensor]:
    """As `open_tensors`, for an index. Every tensor must lie in exactly the shard that the index names."""
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    places = shard_names(path)
    listed_in: dict[str, set[str]] = {}
    for name, shard in places.items():
        listed_in.setdefault(shard, set()).add(name)
    for shard, listed in sorted(listed_in.items()):
        content = _open_weights(path.with_name(shard))
        problems += [f"`{name}` is missing in `{shard}`" for name in sorted(listed - content.keys())]
        problems += [f"`{name}` lies in `{shard}` but is not listed so" for name in sorted(content.keys() - listed)]
        tensors.update({name: content[name] for name in content.keys() & listed})
        if len(problems) > _ENOUGH:
            break
    if problems:
        raise CheckpointError(f"`{path}` does not describe its shards.", problems)
    return tensors


def open_safetensors(path: pathlib.Path) -> dict[str, StoredTensor]:
    """As `open_tensors`, for one safetensors file.

    The safetensors library validates the file. Its own arrays would keep every page in memory until the file is closed.
    Therefore the offsets are then read from the header: a 64-bit length, and as many bytes of JSON.

    ??? cite "Source"

        The format is specified at <https://huggingface.co/docs/safetensors>.
    """
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST:
                raise ValueError(f"its header would take {length:,} bytes, and at most {LARGEST:,} are read")
            header = json.loads(file.read(length))
            end = file.seek(0, 2)
        with safe_open(path, framework="np"):
            pass
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError, SafetensorError) as error:
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
