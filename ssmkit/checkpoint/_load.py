"""Loading of models from checkpoints."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from .._config import checks_itself
from .._scan_layers import scanned
from .._shown import shown
from ..layers._array_kinds import matrix_mask
from ..layers._quantize import NARROW
from ._describe import Checkpoint, detect
from ._errors import CheckpointError
from ._foreign import foreign_tensors, wrapper
from ._layout import FLOATS, Layout, fit, load
from ._skeleton import array_path, arrays_of, skeleton
from ._source import Source
from ._stored import StoredTensor


@checks_itself
def from_pretrained(
    source: str | os.PathLike[str],
    dtype: DTypeLike | None = None,
    *,
    quantize: str | None = None,
    revision: str | None = None,
    strict: bool = False,
    scan_layers: bool = False,
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
    - `scan_layers`: whether equal layers are stacked, as by `ssmkit.scan_layers`. They are stacked as they are read.

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
    if not isinstance(scan_layers, bool):
        raise CheckpointError(f"`scan_layers` must be True or False, got {shown(scan_layers)}.")
    if quantize is not None and not (isinstance(quantize, str) and quantize in NARROW):
        raise CheckpointError(f"`quantize` must be one of {', '.join(NARROW)}, got {shown(quantize)}.")
    checkpoint = detect(source, revision, strict)
    dialect = checkpoint.dialect
    # In a model that is built in a narrow dtype, the arrays that the model keeps in float32 are still wide.
    parts = checkpoint.architecture, dialect, checkpoint.config, jnp.bfloat16 if cast is None else cast
    arrays = arrays_of(*parts)
    layout = dialect.layout(checkpoint.config, arrays)
    tensors = _checked(checkpoint, layout, arrays)

    def slot(path: tuple[Any, ...], leaf: Any, is_matrix: bool) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        source = layout.sources[array_path(path)]
        keep = cast is None and leaf.dtype == jnp.bfloat16
        dtype = source.dtype(lambda name: tensors[name].dtype) if keep else leaf.dtype
        return _Slot((source,), leaf.shape, dtype, NARROW[quantize] if quantize and is_matrix else jnp.array)

    model = skeleton(*parts)
    model = jax.tree_util.tree_map_with_path(slot, model, matrix_mask(model))
    model = scanned(model, _Slot.of_layers) if scan_layers else model
    leaves, structure = jax.tree.flatten(model)
    for i in sorted(range(len(leaves)), key=lambda i: -getattr(leaves[i], "nbytes", 0)):
        if isinstance(leaves[i], _Slot):
            leaves[i] = leaves[i].load(tensors)
    return jax.tree.unflatten(structure, leaves)


@dataclasses.dataclass(frozen=True, slots=True)
class _Slot:
    """The place of one array in a model before it is loaded."""

    sources: tuple[Source, ...]
    """The source of the array, or of its entry for every layer."""
    shape: tuple[int, ...]
    """The shape of the array, without the axis of layers."""
    dtype: np.dtype
    store: Callable[[Any], Any]
    """Makes the array on the device, or that of a layer."""

    @staticmethod
    def of_layers(slots: list["_Slot"]) -> "_Slot":
        """The place of the stack of the arrays of all layers."""
        return dataclasses.replace(slots[0], sources=tuple(source for slot in slots for source in slot.sources))

    @property
    def nbytes(self) -> int:
        """The number of bytes of the array as it is read."""
        return len(self.sources) * math.prod(self.shape) * self.dtype.itemsize

    def load(self, tensors: Mapping[str, StoredTensor]) -> Any:
        """Load the array. Of a stack, one layer at a time is beside it on the device."""
        form = jax.ShapeDtypeStruct(self.shape, self.dtype)
        layers = (load(source, tensors, form, store=self.store) for source in self.sources)
        if len(self.sources) == 1:
            return next(layers)
        stack = None
        for i, layer in enumerate(layers):
            if stack is None:
                stack = jax.tree.map(lambda leaf: jnp.zeros((len(self.sources), *leaf.shape), leaf.dtype), layer)
            stack = _with_layer(stack, layer, i)
        return stack


@functools.partial(jax.jit, donate_argnums=0)
def _with_layer(stack: Any, layer: Any, i: Any) -> Any:
    return jax.tree.map(lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, i, 0), stack, layer)


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
