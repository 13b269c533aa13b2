"""Checkpoints to models."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from .._config import checks_itself
from ..layers._linear import matrix_mask
from ..layers._quantize import NARROW
from ._describe import Checkpoint, detect
from ._errors import CheckpointError, shown
from ._foreign import foreign_tensors, wrapper
from ._skeleton import skeleton, stored_shapes
from ._stored import StoredTensor


_FLOATS = ("float64", "float32", "float16", "bfloat16")
_UNTIED = (
    ": the configuration does not tie the head to the embedding, so a file without a head is of a base model alone. "
    "Save the whole language model, or tie them in the configuration if the head is the embedding"
)
_BLOCK = 1 << 20


@checks_itself
def from_pretrained(
    source: str | os.PathLike[str],
    dtype: DTypeLike | None = None,
    *,
    quantize: str | None = None,
    revision: str | None = None,
    strict: bool = False,
) -> Any:
    """Load a model. The architecture and the file format are detected; everything that does not fit is an error.

    Arrays go to the default device one at a time, the largest first, straight from the mapped file.

    **Arguments:**

    - `source`: a folder, a weight file with its configuration beside it, or the id of a model on the Hugging Face hub
        (which is fetched into, and found in, the cache of `huggingface_hub`).
    - `dtype`: of the weights, `None` to keep each as it is stored. Arrays that the model keeps in float32, such as
        norms and decay rates, are float32 either way.
    - `quantize`: `"int8"` or `"bfloat16"` stores the matrices of projections and embeddings so, and nothing else, as
        `ssmkit.quantize`; they are narrowed one at a time as they are read.
    - `revision`: the branch, tag or commit of a model on the hub; `None` for its main branch.
    - `strict`: whether keys of the configuration that are unknown are an error. They are ignored otherwise, with one
        warning that lists them. Keys known to change results are an error in any case, unless they are supported.

    **Returns:** the model.

    **Raises:** `CheckpointError` listing every configuration key that cannot be honoured, or every tensor that is
    missing, unexpected, mis-shaped, not of floating point, or holds NaN or infinity.
    """
    try:
        cast = None if dtype is None else np.dtype(dtype)
    except Exception as error:  # NumPy reads a small language, and fails in several ways
        raise CheckpointError(f"`dtype` must name a dtype, got {shown(dtype)}.") from error
    if cast is not None and (cast.name not in _FLOATS or jax.dtypes.canonicalize_dtype(cast) != cast):
        raise CheckpointError(f"`dtype` must be float32 or narrower (float64 with 64-bit JAX), got {cast}.")
    if quantize is not None and not (isinstance(quantize, str) and quantize in NARROW):
        raise CheckpointError(f"`quantize` must be one of {', '.join(NARROW)}, got {shown(quantize)}.")
    checkpoint = detect(source, revision, strict)
    dialect = checkpoint.dialect
    # Built in a narrow dtype, the arrays that are wide nonetheless are those that the model keeps in float32.
    parts = checkpoint.architecture, dialect, checkpoint.config, jnp.bfloat16 if cast is None else cast
    tensors = _checked(checkpoint, stored_shapes(*parts))
    model = skeleton(*parts)
    slots, structure = jax.tree_util.tree_flatten_with_path(model)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in slots]
    leaves = [slot for _, slot in slots]
    is_matrix = jax.tree.leaves(matrix_mask(model))
    names = {
        dialect.tensor_name(path): index
        for index, path in enumerate(paths)
        if isinstance(leaves[index], jax.ShapeDtypeStruct)
    }
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].nbytes):
        slot = leaves[names[name]]
        keep = cast is None and slot.dtype == jnp.bfloat16
        values = _load(name, tensor, tensor.dtype if keep else slot.dtype, slot.shape)
        store = NARROW[quantize] if quantize is not None and is_matrix[names[name]] else jnp.array
        leaves[names[name]] = _placed(name, values, store)
    return jax.tree_util.tree_unflatten(structure, leaves)


def _checked(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint under their canonical names, without copies; exactly those of `shapes`."""
    dialect = checkpoint.dialect
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    known = {*shapes, *dialect.copies}
    for name, tensor in checkpoint.tensors.items():
        canonical = dialect.canonical(name, known)
        if canonical in tensors:
            problems.append(f"`{name}`: unexpected beside its other spelling")
        tensors[canonical] = tensor
    for name, original in dialect.copies.items():
        if name in tensors and name not in shapes and original in tensors:
            if not _identical(tensors.pop(name), tensors[original]):
                problems.append(f"`{name}`: differs from `{original}` although the configuration ties them")
    problems += [
        f"`{name}`: missing, expected shape {shape}{_UNTIED if name in dialect.copies else ''}"
        for name, shape in shapes.items()
        if name not in tensors
    ]
    for name, tensor in tensors.items():
        if name not in shapes:
            problems.append(f"`{name}`: unexpected, got shape {tensor.shape}")
        elif tensor.shape != shapes[name]:
            problems.append(f"`{name}`: got shape {tensor.shape}, expected {shapes[name]}")
        elif tensor.dtype.name not in _FLOATS:
            problems.append(f"`{name}`: got dtype {tensor.dtype}, expected one of {', '.join(_FLOATS)}")
    what = foreign_tensors(checkpoint.tensors) if problems else None
    if what is not None:
        raise CheckpointError(f"`{next(iter(checkpoint.tensors.values())).path}` holds {what}.")
    if problems:
        wrapped = wrapper(checkpoint.tensors.keys(), lambda name: dialect.canonical(name, known) in known)
        raise CheckpointError(
            f"The weights do not fit {checkpoint.architecture.name} as configured in `{dialect.config_file}` "
            f"({dialect.name} format).{'' if wrapped is None else f' {wrapped}.'}",
            problems,
        )
    return tensors


def _identical(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors are the same, bit for bit."""
    if a == b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    pairs = zip(_blocks(a.read()), _blocks(b.read()), strict=True)
    return all(x.tobytes() == y.tobytes() for x, y in pairs)


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """The elements in order, a few at a time: work on a block takes little memory."""
    flat = values.reshape(-1)
    return (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))


def _load(name: str, tensor: StoredTensor, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """One array on the host, as far as possible still a map of its file.

    **Raises:** `CheckpointError` when it holds NaN or infinity, perhaps only once cast.
    """
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise CheckpointError(f"`{name}` is {dtype}. Pass `dtype=`, or enable 64-bit arrays in JAX.")
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        values = tensor.read().astype(dtype, copy=False)
    if not all(np.isfinite(block).all() for block in _blocks(values)):
        raise CheckpointError(f"`{name}` holds NaN or infinity (stored as {tensor.dtype}, read as {dtype}).")
    return values.reshape(shape)


def _placed(name: str, values: np.ndarray, store: Callable[[Any], Any]) -> Any:
    """The array on the default device, as `store` makes it.

    **Raises:** `CheckpointError` when it does not fit.
    """
    try:
        return jax.block_until_ready(store(values))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        device = jax.devices()[0]
        raise CheckpointError(f"`{name}` of {values.nbytes:,} bytes does not fit on {device}: {error}") from error
