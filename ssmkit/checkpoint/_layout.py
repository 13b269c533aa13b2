"""The sources of a model's arrays in the files of a format, and the one way to check and read arrays."""

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from ._errors import CheckpointError
from ._source import Source
from ._stored import StoredTensor


FLOATS = ("float64", "float32", "float16", "bfloat16")
_UNTIED = (
    ": the configuration does not tie the head to the embedding, so a file without a head is of a base model alone. "
    "Save the whole language model, or tie them in the configuration if the head is the embedding"
)
_BLOCK = 1 << 20


class Layout(NamedTuple):
    """The sources of one model's arrays in the files of one format."""

    files: tuple[str, ...]
    """The names of weight files, in order of preference."""
    sources: Mapping[str, Source]
    """The source of each array, by its path in the model."""
    spellings: Mapping[str, str]
    """The written name of each tensor, by the names under which it may be read."""
    copies: Mapping[str, str]
    """For tensors that a model with tied weights does not have: the tensor of which they may be a copy."""
    ignored: tuple[str, ...] = ()
    """Patterns of names of tensors that are not read, in which `*` stands for any characters."""

    def tensor_shapes(self, arrays: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by the name under which it is written.

        **Arguments:**

        - `arrays`: the arrays of the model, by their paths.

        **Raises:** `CheckpointError` when the arrays do not fill the tensors: a part has no array, or has two.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        filled: dict[str, int] = {}
        problems = []
        for path, array in arrays.items():
            source = self.sources[path]
            shape, names = source.tensor_shape(array.shape), source.names
            for name in names:
                if shapes.setdefault(name, shape) != shape:
                    problems.append(f"`{name}`: its arrays ask for the shapes {shapes[name]} and {shape}")
                filled[name] = filled.get(name, 0) + array.size // len(names)
        problems += [
            f"`{name}`: its arrays have {filled[name]:,} numbers, and the tensor {math.prod(shape):,}"
            for name, shape in shapes.items()
            if filled[name] != math.prod(shape)
        ]
        if problems:
            raise CheckpointError("The format has tensors that the model's arrays do not fill.", problems)
        return shapes

    def written(self, name: str) -> str:
        """The name under which a tensor is written, from a name under which it is read."""
        return self.spellings.get(name, name)


def fit(
    layout: Layout, arrays: Mapping[str, jax.ShapeDtypeStruct], stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Compare the tensors of files with the arrays of a model. Only tensors that must be copies of others are read.

    **Arguments:**

    - `layout`: the layout of the files.
    - `arrays`: the arrays of the model, by their paths.
    - `stored`: the tensors, by their names in the files.

    **Returns:** the tensors, by the names under which they are written, and a list of all problems.
    """
    shapes = layout.tensor_shapes(arrays)
    found: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for name, tensor in stored.items():
        written = layout.written(name)
        if written not in shapes and any(fnmatch.fnmatchcase(name, pattern) for pattern in layout.ignored):
            continue
        if written in found:
            problems.append(f"`{name}`: unexpected beside its other spelling")
        found[written] = tensor
    for name, original in layout.copies.items():
        if name in found and name not in shapes and original in found:
            if not _identical(found.pop(name), found[original]):
                problems.append(f"`{name}`: differs from `{original}`, but the model has one array for both")
    problems += [
        f"`{name}`: missing, expected shape {shape}{_UNTIED if name in layout.copies else ''}"
        for name, shape in shapes.items()
        if name not in found
    ]
    dtypes = {name: array.dtype for path, array in arrays.items() for name in layout.sources[path].names}
    for name, tensor in found.items():
        if name not in shapes:
            problems.append(f"`{name}`: unexpected, got shape {tensor.shape}")
        elif tensor.shape != shapes[name]:
            problems.append(f"`{name}`: got shape {tensor.shape}, expected {shapes[name]}")
        elif tensor.dtype.name not in (accepted := _readable_as(dtypes[name])):
            expected = accepted[0] if len(accepted) == 1 else f"one of {', '.join(accepted)}"
            problems.append(f"`{name}`: got dtype {tensor.dtype}, expected {expected}")
    return found, problems


def _readable_as(dtype: np.dtype) -> tuple[str, ...]:
    """The dtypes in which an array may be stored: any floating-point dtype for a floating-point array, else its own."""
    return FLOATS if dtype.name in FLOATS else (dtype.name,)


def _identical(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    if a == b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    pairs = zip(_blocks(a.read()), _blocks(b.read()), strict=True)
    return all(x.tobytes() == y.tobytes() for x, y in pairs)


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """The elements in order, in blocks, so that work on a block takes little memory."""
    flat = values.reshape(-1)
    return (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))


def load(
    source: Source,
    tensors: Mapping[str, StoredTensor],
    array: jax.ShapeDtypeStruct,
    *,
    store: Callable[[Any], Any] = jnp.array,
    sharding: NamedSharding | None = None,
) -> Any:
    """Load one array. On the host it stays a map of its file, as far as possible.

    **Arguments:**

    - `source`: the source of the array.
    - `tensors`: tensors that `fit` has accepted.
    - `array`: the array's shape and dtype.
    - `store`: makes the array on the device.
    - `sharding`: where the array lies; every device then gets its own part of the file, without `store`. With `None`,
        the array is on the default device.

    **Raises:** `CheckpointError` when the array holds NaN or infinity, before or after the cast, or does not fit on the
    device.
    """
    stored = source.read(lambda name: tensors[name].read(), array.shape)
    dtype = array.dtype
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise CheckpointError(f"{source} is {dtype}. Pass `dtype=`, or enable 64-bit arrays in JAX.")

    def part(index: Any) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            values = stored[index].astype(dtype, "C", copy=False)
        if not all(np.isfinite(block).all() for block in _blocks(values)):
            raise CheckpointError(f"{source} holds NaN or infinity (stored as {stored.dtype}, read as {dtype}).")
        return values

    try:
        if sharding is not None:
            return jax.block_until_ready(jax.make_array_from_callback(array.shape, sharding, part))
        return jax.block_until_ready(store(part(...)))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        where = f"{jax.devices()[0]}" if sharding is None else f"the mesh {dict(sharding.mesh.shape)}"
        size = math.prod(array.shape) * dtype.itemsize
        raise CheckpointError(f"{source} of {size:,} bytes does not fit on {where}: {error}") from error
