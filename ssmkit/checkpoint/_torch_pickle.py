"""Reading and writing of PyTorch's zip checkpoints (`torch.save`) without PyTorch.

Such a file is an uncompressed zip archive: `<root>/data.pkl` is a pickle that describes the tensors, and each
`<root>/data/<key>` holds the raw bytes of one storage. A pickle is a program. Here the small machine of
`_pickle_machine.py` runs it. The table `_GLOBALS` below lists the few names that a file may refer to.
"""

import dataclasses
import functools
import io
import math
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from .._reading import open_regular
from ._errors import CheckpointError
from ._json import LARGEST
from ._pickle_machine import run_pickle
from ._stored import StoredTensor


_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_ALIGNMENT = 64
_OVERLAP, _SLACK = (
    2,
    64 << 20,
)  # weights may be tied: all tensors together take at most so many times the file, and more
_MOST_AXES = 32
_LARGEST_PROGRAM = 2 << 20  # bytes of a pickle: about 250 describe a tensor, and one may make a dictionary of 90
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


def open_torch_pickle(path: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of a `torch.save` file, by name; their data stays in the file.

    **Arguments:**

    - `path`: a zip checkpoint whose top level is a dictionary from names to tensors.

    **Returns:** one `StoredTensor` per name, in the file's order. Tied tensors are equal.

    **Raises:** `CheckpointError` for any other file: truncated, compressed, legacy, big-endian, with a global that is
    not a tensor's, or with a tensor that does not lie inside its storage.
    """
    try:
        with _Frugal(open_regular(path).detach()) as file, zipfile.ZipFile(file) as archive:
            return _read_archive(path, archive, file)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile file may fail anywhere in it, in any way
        raise CheckpointError(f"`{path}` is not a readable torch checkpoint: {_why(path, error)}") from error


class _Frugal(io.BufferedReader):
    """A file that returns at most `LARGEST` bytes at once: zipfile requests as many bytes as a file claims to hold."""

    def read(self, size: int | None = -1) -> bytes:
        """As `io.BufferedReader.read`."""
        content = super().read(LARGEST + 1 if size is None or size < 0 else min(size, LARGEST + 1))
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST:,} bytes describe its tensors")
        return content


def _why(path: pathlib.Path, error: Exception) -> str:
    """The reason why `path` could not be opened, with a remedy for the known kinds of file."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}."
    if isinstance(error, zipfile.BadZipFile):
        with open_regular(path) as file:
            if file.read(1) == b"\x80":
                return "it has the legacy (not zip) format. Save it again with a PyTorch of version 1.6 or newer."
        return "it is no zip archive, or truncated. Download it again."
    return f"it is damaged ({type(error).__name__}: {error})."


def _read_archive(path: pathlib.Path, archive: zipfile.ZipFile, file: io.BufferedReader) -> dict[str, StoredTensor]:
    """As `open_torch_pickle`, for an open archive; may raise anything."""
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise CheckpointError(f"`{path}` is no torch checkpoint: expected one `data.pkl`, got {len(pickles)}.")
    root = pickles[0].removesuffix("data.pkl")
    size = os.fstat(file.fileno()).st_size
    for name, info in members.items():
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size > size:
            raise CheckpointError(f"`{path}` is no torch checkpoint: `{name}` in it is compressed or truncated.")
    if members[pickles[0]].file_size > _LARGEST_PROGRAM:
        got = members[pickles[0]].file_size
        raise CheckpointError(
            f"`{path}` describes its tensors in {got:,} bytes, and at most {_LARGEST_PROGRAM:,} are read."
        )
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise CheckpointError(f"`{path}` is big-endian. Save it again on a little-endian machine.")

    def storage(persistent_id: Any) -> _Storage:
        """The location of a storage, checked against the archive."""
        if not isinstance(persistent_id, tuple) or len(persistent_id) != 5:
            raise ValueError("a persistent id that is no storage")
        kind, dtype, key, _, count = persistent_id
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str) or not _naturals((count,)):
            raise ValueError("a persistent id that is no storage")
        return located(dtype, key, count)

    @functools.cache
    def located(dtype: np.dtype, key: str, count: int) -> _Storage:
        """As `storage`, but cached, because many tensors may lie in one storage."""
        info = members[f"{root}data/{key}"]
        file.seek(info.header_offset)
        magic, *_, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if magic != b"PK\x03\x04" or count * dtype.itemsize > info.file_size or offset + info.file_size > size:
            raise ValueError(f"storage `{key}` does not lie inside the file")
        return _Storage(path, dtype, offset, count)

    tensors = run_pickle(archive.read(pickles[0]), _GLOBALS, storage)
    if not isinstance(tensors, dict):
        raise CheckpointError(f"`{path}` must hold a dictionary of tensors, got {type(tensors).__name__}.")
    problems = [
        f"`{name}`: expected a tensor, got {type(tensor).__name__}"
        for name, tensor in tensors.items()
        if not isinstance(tensor, StoredTensor)
    ]
    if problems:
        raise CheckpointError(f"`{path}` holds more than tensors. Save the model's `state_dict()` alone.", problems)
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > _OVERLAP * size + _SLACK:
        raise CheckpointError(
            f"`{path}` holds tensors that overlap: they take {total:,} bytes, and the file has {size:,}. Save the "
            "model again with a tensor of its own under every name."
        )
    return tensors


@dataclasses.dataclass(frozen=True)
class _Storage:
    """`count` elements of `dtype` at byte `offset` of `path`."""

    path: pathlib.Path
    dtype: np.dtype
    offset: int
    count: int


def _naturals(values: Any) -> bool:
    """Whether `values` is a tuple of integers of 63 bits, none negative."""
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    """A strided view of a storage; `rest` is requires_grad, hooks, and in newer files metadata (lazy negation)."""
    if not all(isinstance(axes, tuple) and len(axes) <= _MOST_AXES for axes in (shape, strides)):
        raise ValueError("a tensor has an impossible shape")
    if not isinstance(storage, _Storage) or not _naturals((offset, *shape, *strides)):
        raise ValueError("a tensor needs a storage, and an offset, shape and strides that are not negative")
    if len(shape) != len(strides) or any(rest[2:]):
        raise ValueError("a tensor has an impossible shape, or a lazy negation or conjugation")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.count:
        raise ValueError(f"a tensor reaches element {last} of a storage of {storage.count}")
    if math.prod(shape) > storage.count:
        raise ValueError(f"a tensor of {math.prod(shape)} elements lies on a storage of {storage.count}")
    size = storage.dtype.itemsize
    contiguous = strides == _row_major(shape)
    return StoredTensor(
        storage.path,
        storage.dtype,
        shape,
        storage.offset + offset * size,
        None if contiguous or 0 in shape else tuple(stride * size for stride in strides),
    )


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    """A parameter is its tensor."""
    return data


def _ordered_dict(*arguments: Any) -> dict:
    """An empty dictionary; PyTorch fills it afterwards."""
    if arguments:
        raise ValueError("an OrderedDict with arguments")
    return {}


_GLOBALS: dict[str, Any] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    **{f"torch {name}": dtype for name, dtype in _STORAGES.items()},
}


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a contiguous tensor."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(strides[::-1])


def write_torch_pickle(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file that `torch.load(path, weights_only=True)` reads as a dictionary of tensors.

    **Arguments:**

    - `path`: the file, overwritten.
    - `tensors`: contiguous arrays by name. Names of one and the same array object share one storage (tied weights).

    **Raises:** `CheckpointError` when PyTorch has no storage of an array's dtype.
    """
    storages = {dtype: name for name, dtype in _STORAGES.items()}
    keys: dict[int, str] = {}
    arrays: list[np.ndarray] = []
    program = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    for name, array in tensors.items():
        if array.dtype not in storages:
            raise CheckpointError(f"`{name}` cannot be written for PyTorch: got dtype {array.dtype}.")
        if id(array) not in keys:
            keys[id(array)] = str(len(arrays))
            arrays.append(np.asarray(array, order="C"))
        storage = f"ctorch\n{storages[array.dtype]}\n".encode()
        program += [_constant(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", b"(", _constant("storage"), storage]
        program += [_constant(keys[id(array)]), _constant("cpu"), _constant(array.size), b"tQ", _constant(0)]
        program += [_constant(array.shape), _constant(_row_major(array.shape)), _constant(False)]
        program += [b"ccollections\nOrderedDict\n)RtR"]
    program += [b"u."]
    with open(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), b"".join(program))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        for key, array in enumerate(arrays):
            info = _aligned_member(f"archive/data/{key}", array.nbytes, file.tell())
            with archive.open(info, "w", force_zip64=True) as member:
                member.write(array.reshape(-1).view(np.uint8).data)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")


def _constant(value: str | int | bool | tuple[int, ...]) -> bytes:
    """The instructions that push a constant: the pickle without its first (protocol) and last (stop) instruction."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _aligned_member(name: str, nbytes: int, position: int) -> zipfile.ZipInfo:
    """A member of `nbytes`, written at `position`, whose data starts at a multiple of `_ALIGNMENT` bytes."""
    info = zipfile.ZipInfo(name)
    info.file_size = nbytes
    padding_header, zip64_header = 4, 20
    padding = -(position + _LOCAL_HEADER.size + len(name) + padding_header + zip64_header) % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    return info
