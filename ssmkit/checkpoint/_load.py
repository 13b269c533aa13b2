"""Checkpoints to models."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from .._layers import matrix_mask
from .._quantize import NARROW
from ._dialect import Architecture, Dialect, architectures
from ._errors import CheckpointError
from ._foreign import ADAPTER_FILE, foreign_files, foreign_tensors, refuse_foreign_file
from ._hub import locate
from ._keys import token_ids
from ._stored import StoredTensor
from ._tensors import open_tensors, read_json, shard_names


_GENERATION_FILE = "generation_config.json"
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_UNTIED = (
    ": the configuration does not tie the head to the embedding, so a file without a head is of a base model alone. "
    "Save the whole language model, or tie them in the configuration if the head is the embedding"
)
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, known without reading its weights."""

    architecture: Architecture
    dialect: Dialect
    config: Any
    tensors: Mapping[str, StoredTensor]
    """By the names of the files; each has a `path`, `dtype`, `shape` and `nbytes`."""


def describe(source: str | os.PathLike[str], *, revision: str | None = None, strict: bool = False) -> Checkpoint:
    """Detect what a checkpoint is, and list its tensors.

    **Arguments:**

    - `source`, `revision`, `strict`: as for `from_pretrained`.

    **Returns:** a `Checkpoint`; no weight has been read.

    **Raises:** `CheckpointError`, as `from_pretrained`.
    """
    return _describe(source, revision, strict)


def _describe(source: str | os.PathLike[str], revision: str | None, strict: bool) -> Checkpoint:
    """As `describe`, called by what a user calls, to which warnings point."""
    place = locate(source, revision)
    folder = place.fetch(sorted({*_config_files(), _GENERATION_FILE, ADAPTER_FILE}))
    file = place.path if place.path is not None and place.path != folder else None
    for path in (file, *map(folder.joinpath, _config_files())):
        if path is not None:
            refuse_foreign_file(path)
    contents = {name: read_json(folder / name) for name in sorted(_config_files()) if (folder / name).is_file()}
    found = [
        (architecture, dialect, contents[dialect.config_file])
        for architecture in architectures()
        for dialect in architecture.dialects
        if dialect.config_file in contents and dialect.matches(contents[dialect.config_file])
    ]
    if not found:
        problems = [*foreign_files(place.names())] or [*_unknown(contents)]
        raise CheckpointError(f"`{source}` holds no model of a known architecture.", problems)
    if (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"`{source}` holds an adapter (`{ADAPTER_FILE}`) beside a model, which would change its results and is not "
            "applied. Merge it into the model (`merge_and_unload()` of peft) and save that alone, or remove its files."
        )
    # A folder may hold two dialects of one model: the one that the named weight file belongs to comes first.
    found.sort(key=lambda entry: file is not None and file.name not in entry[1].weight_files)
    for architecture, dialect, content in found:
        config = _with_stop_tokens(dialect.read_config(content), folder / _GENERATION_FILE)
        unknown = dialect.unknown_keys(content)
        if strict and unknown:
            raise CheckpointError(
                f"`{folder / dialect.config_file}` has keys that are unknown, and may change the model. Remove those "
                "that do not, or load it without `strict`.",
                [f"`{key}`: got {value!r}" for key, value in unknown.items()],
            )
        for weights in map(folder.joinpath, dialect.weight_files) if file is None else [file]:
            place.fetch([weights.name])
            if not weights.is_file():
                continue
            shards = sorted(set(shard_names(weights).values())) if weights.name.endswith(".index.json") else []
            place.fetch(shards) if shards else None
            for path in (weights, *map(weights.with_name, shards)):
                refuse_foreign_file(path)
            checkpoint = Checkpoint(architecture, dialect, config, open_tensors(weights))
            if unknown:
                listed = ", ".join(f"`{key}`" for key in unknown)
                warnings.warn(
                    f"`{folder / dialect.config_file}` has keys that are unknown and were ignored: {listed}. The model "
                    "is another one if they matter; `strict=True` refuses them.",
                    stacklevel=3,
                )
            return checkpoint
    expected = " or ".join(f"`{name}`" for _, dialect, _ in found for name in dialect.weight_files)
    raise CheckpointError(f"`{source}` holds no weights: expected {expected}.", foreign_files(place.names()))


def _config_files() -> set[str]:
    """The name of every known configuration file."""
    return {dialect.config_file for architecture in architectures() for dialect in architecture.dialects}


def _with_stop_tokens(config: Any, path: pathlib.Path) -> Any:
    """A configuration that ends texts as the file of generation settings says, as HF's `generate` does.

    A file that names no `eos_token_id`, and a configuration that has no place for one, change nothing.
    """
    if not path.is_file() or not hasattr(config, "eos_token_id"):
        return config
    value = read_json(path).get("eos_token_id")
    try:
        end = token_ids(value)
    except ValueError as error:
        raise CheckpointError(f"`{path}` holds `eos_token_id` {value!r}, expected {error}.") from None
    return config if end is None else dataclasses.replace(config, eos_token_id=end)


def _unknown(contents: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What was found in place of a known configuration, and what is known."""
    for name, content in contents.items():
        yield f"`{name}`: got model_type {content.get('model_type')!r} and the keys {', '.join(sorted(content))}"
    for architecture in architectures():
        for dialect in architecture.dialects:
            yield f"known: {architecture.name} in the {dialect.name} format, with `{dialect.config_file}`"


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
    except TypeError as error:
        raise CheckpointError(f"`dtype` must name a dtype, got {dtype!r}.") from error
    if cast is not None and (cast.name not in _FLOATS or jax.dtypes.canonicalize_dtype(cast) != cast):
        raise CheckpointError(f"`dtype` must be float32 or narrower (float64 with 64-bit JAX), got {cast}.")
    if quantize is not None and quantize not in NARROW:
        raise CheckpointError(f"`quantize` must be one of {', '.join(NARROW)}, got {quantize!r}.")
    checkpoint = _describe(source, revision, strict)
    dialect = checkpoint.dialect
    try:
        # Built in a narrow dtype, the arrays that are wide nonetheless are those that the model keeps in float32.
        narrow = jnp.bfloat16 if cast is None else cast
        skeleton = eqx.filter_eval_shape(
            checkpoint.architecture.model, checkpoint.config, key=jax.random.key(0), dtype=narrow
        )
    except (ArithmeticError, MemoryError, TypeError, ValueError) as error:
        raise CheckpointError(f"`{dialect.config_file}` describes a model that cannot be built: {error}") from error
    slots, structure = jax.tree_util.tree_flatten_with_path(skeleton)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in slots]
    leaves = [slot for _, slot in slots]
    is_matrix = jax.tree.leaves(matrix_mask(skeleton))
    names = {
        dialect.tensor_name(path): index
        for index, path in enumerate(paths)
        if isinstance(leaves[index], jax.ShapeDtypeStruct)
    }
    shapes = {name: dialect.file_shape(paths[index], leaves[index].shape) for name, index in names.items()}
    tensors = _checked(checkpoint, shapes)
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].nbytes):
        slot = leaves[names[name]]
        keep = cast is None and slot.dtype == jnp.bfloat16
        values = _load(name, tensor, tensor.dtype if keep else slot.dtype, slot.shape)
        store = NARROW[quantize] if quantize is not None and is_matrix[names[name]] else jnp.array
        leaves[names[name]] = jax.block_until_ready(store(values))
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
        raise CheckpointError(
            f"The weights do not fit {checkpoint.architecture.name} as configured in `{dialect.config_file}` "
            f"({dialect.name} format).",
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
