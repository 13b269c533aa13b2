"""Loading of models from checkpoints."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from .._config import checks_itself
from .._shown import shown
from ..layers._array_kinds import matrix_mask
from ..layers._quantize import NARROW
from ._describe import Checkpoint, detect
from ._errors import CheckpointError
from ._foreign import foreign_tensors, wrapper
from ._layout import FLOATS, Layout, fit, load
from ._skeleton import array_path, arrays_of, skeleton
from ._stored import StoredTensor


@checks_itself
def from_pretrained(
    source: str | os.PathLike[str],
    dtype: DTypeLike | None = None,
    *,
    quantize: str | None = None,
    revision: str | None = None,
    strict: bool = False,
) -> Any:
    """Load a model. The architecture and the file format are detected, and every mismatch is an error.

    Arrays go to the default device one at a time, the largest first, straight from the mapped file.

    **Arguments:**

    - `source`: a folder, a weight file with its configuration beside it, or the id of a model on the Hugging Face hub
        (the cache of `huggingface_hub` is used).
    - `dtype`: the dtype of the weights; `None` keeps the stored dtypes. Arrays that the model keeps in float32, such as
        norms and decay rates, are always float32.
    - `quantize`: `"int8"` or `"bfloat16"` stores the matrices of projections and embeddings in this form, as
        `ssmkit.quantize` does. They are narrowed one at a time as they are read.
    - `revision`: the branch, tag or commit of a model on the hub; `None` for its main branch.
    - `strict`: whether unknown keys of the configuration are an error. Otherwise they are ignored, with one warning
        that lists them. Unsupported keys that are known to change results are always an error.

    **Returns:** the model.

    **Raises:** `CheckpointError` listing every unsupported configuration key, or every tensor that is missing,
    unexpected, mis-shaped, not floating-point, or holds NaN or infinity.
    """
    try:
        cast = None if dtype is None else np.dtype(dtype)
    except Exception as error:  # NumPy reads a small language, and fails in several ways
        raise CheckpointError(f"`dtype` must name a dtype, got {shown(dtype)}.") from error
    if cast is not None and (cast.name not in FLOATS or jax.dtypes.canonicalize_dtype(cast) != cast):
        raise CheckpointError(f"`dtype` must be float32 or narrower (float64 with 64-bit JAX), got {cast}.")
    if quantize is not None and not (isinstance(quantize, str) and quantize in NARROW):
        raise CheckpointError(f"`quantize` must be one of {', '.join(NARROW)}, got {shown(quantize)}.")
    checkpoint = detect(source, revision, strict)
    dialect = checkpoint.dialect
    # In a model that is built in a narrow dtype, the arrays that the model keeps in float32 are still wide.
    parts = checkpoint.architecture, dialect, checkpoint.config, jnp.bfloat16 if cast is None else cast
    arrays = arrays_of(*parts)
    layout = dialect.layout(checkpoint.config, arrays)
    tensors = _checked(checkpoint, layout, arrays)
    model = skeleton(*parts)
    slots = _slots(model)
    for slot in sorted(slots, key=lambda slot: -slot.nbytes):
        if slot.path is not None:
            store = NARROW[quantize] if quantize is not None and slot.is_matrix else jnp.array
            keep = cast is None and slot.leaf.dtype == jnp.bfloat16
            slot.leaf = load(layout.sources[slot.path], tensors, slot.leaf, keep=keep, store=store)
    return jax.tree.unflatten(jax.tree.structure(model), [slot.leaf for slot in slots])


@dataclasses.dataclass(slots=True)
class _Slot:
    """One leaf of a model, in the order of its tree."""

    path: str | None
    """The path of the array; `None` when the leaf is not an array."""
    leaf: Any
    """A `jax.ShapeDtypeStruct` at first, and the array after loading."""
    is_matrix: bool

    @property
    def nbytes(self) -> int:
        """The number of bytes of the array."""
        return 0 if self.path is None else self.leaf.size * self.leaf.dtype.itemsize


def _slots(model: Any) -> list[_Slot]:
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    return [
        _Slot(array_path(keys) if isinstance(leaf, jax.ShapeDtypeStruct) else None, leaf, is_matrix)
        for (keys, leaf), is_matrix in zip(leaves, jax.tree.leaves(matrix_mask(model)), strict=True)
    ]


def _checked(
    checkpoint: Checkpoint, layout: Layout, arrays: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, StoredTensor]:
    """The tensors of exactly the model's arrays, without copies, by the names under which they are written."""
    tensors, problems = fit(layout, arrays, checkpoint.tensors)
    what = foreign_tensors(checkpoint.tensors) if problems else None
    if what is not None:
        raise CheckpointError(f"`{next(iter(checkpoint.tensors.values())).path}` holds {what}.")
    if problems:
        known = {*layout.tensor_shapes(arrays), *layout.copies}
        name, file = checkpoint.architecture.name, checkpoint.dialect.config_file
        wrapped = wrapper(checkpoint.tensors.keys(), lambda other: layout.written(other) in known)
        raise CheckpointError(
            f"The weights do not fit {name} as configured in `{file}` ({checkpoint.dialect.name} format)."
            f"{'' if wrapped is None else f' {wrapped}.'}",
            problems,
        )
    return tensors
