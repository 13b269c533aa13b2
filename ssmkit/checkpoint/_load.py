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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, DTypeLike

from .._config import checks_itself
from .._scan_layers import scanned
from .._shown import shown
from ..layers._apart import apart
from ..layers._array_kinds import matrix_mask
from ..layers._matrix import Int8Matrix
from ..layers._quantize import NARROW
from ..parallel._mesh import check_mesh
from ..parallel._placement import shardings
from ._describe import Checkpoint, detect
from ._errors import CheckpointError
from ._foreign import foreign_tensors, wrapper
from ._layout import FLOATS, Layout, fit, load
from ._skeleton import array_path, arrays_of, skeleton
from ._source import Slice, Source
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
    mesh: Mesh | None = None,
) -> Any:
    """Load a model. The architecture and the file format are detected, and every mismatch is an error.

    Arrays go to the default device one at a time, the largest first, straight from the mapped file. With a `mesh`,
    every device gets its own part of each array.

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
    - `mesh`: the mesh on which the model is placed, as by `ssmkit.shard`; `None` for the default device.

    **Returns:** the model.

    **Raises:** `CheckpointError` listing every unsupported configuration key, or every tensor that is missing,
    unexpected, mis-shaped, not floating-point, or holds NaN or infinity; `ValueError` for a mesh with other axes than
    `data`, `model` and `sequence`.
    """
    if mesh is not None:
        check_mesh(mesh)
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
    if mesh is not None:
        model = apart(model, mesh.shape.get("model", 1))
    model = scanned(model, _Slot.of_layers) if scan_layers else model
    leaves, structure = jax.tree.flatten(model)
    places = [None] * len(leaves) if mesh is None else jax.tree.leaves(shardings(model, mesh))
    for i in sorted(range(len(leaves)), key=lambda i: -getattr(leaves[i], "nbytes", 0)):
        if isinstance(leaves[i], _Slot):
            leaves[i] = leaves[i].load(tensors, places[i])
    return jax.tree.unflatten(structure, leaves)


@dataclasses.dataclass(frozen=True, slots=True)
class _Slot:
    """The place of one array in a model before it is loaded."""

    sources: tuple[Source, ...]
    """The source of the array, or of its entry for every layer."""
    shape: tuple[int, ...]
    """The shape of the array, with an axis of layers if there are several sources."""
    dtype: np.dtype
    store: Callable[[Any], Any]
    """Makes the array on the device, or that of a layer."""

    @staticmethod
    def of_layers(slots: list["_Slot"]) -> "_Slot":
        """The place of the stack of the arrays of all layers."""
        sources = tuple(source for slot in slots for source in slot.sources)
        return dataclasses.replace(slots[0], sources=sources, shape=(len(sources), *slots[0].shape))

    def part(self, start: int, stop: int, axis: int) -> "_Slot":
        """The place of a part of the array."""
        axis %= len(self.shape)
        step = Slice(start, self.shape[axis], axis)
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        sources = tuple(Source(source.name, (*source.steps, step)) for source in self.sources)
        return dataclasses.replace(self, sources=sources, shape=shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the array as it is read."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self, tensors: Mapping[str, StoredTensor], where: NamedSharding | None) -> Any:
        """Load the array. Of a stack, one layer at a time is beside it on the device.

        **Arguments:**

        - `tensors`: the tensors of the files.
        - `where`: where the array lies; `None` for the default device.
        """
        if len(self.sources) == 1:
            return self._one(self.sources[0], self.shape, tensors, where)
        one = None if where is None else NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
        stack = None
        for i, source in enumerate(self.sources):
            layer = self._one(source, self.shape[1:], tensors, one)
            if stack is None:
                stack = jax.tree.map(lambda leaf: _stack(len(self.sources), leaf), layer)
            stack = _with_layer(stack, layer, i)
        return stack

    def _one(
        self, source: Source, shape: tuple[int, ...], tensors: Mapping[str, StoredTensor], where: NamedSharding | None
    ) -> Any:
        """Load one array of this shape. A matrix of 8 bits is narrowed on the host, because whole rows are scaled."""
        if where is not None and self.store is NARROW["int8"]:
            matrix = self._one(source, shape, tensors, None)
            spec = (*where.spec, *[None] * (len(shape) - len(where.spec)))
            scale = NamedSharding(where.mesh, PartitionSpec(*spec[:-1]))
            return Int8Matrix(jax.device_put(matrix.values, where), jax.device_put(matrix.scale, scale))
        is_narrowed = where is not None and self.store is NARROW["bfloat16"]
        form = jax.ShapeDtypeStruct(shape, jnp.bfloat16 if is_narrowed else self.dtype)
        return load(source, tensors, form, store=self.store, sharding=where)


def _stack(layers: int, leaf: Array) -> Array:
    """Zeros for a stack of arrays like this one, which lie where it lies: each device makes its own part."""
    own = leaf.sharding
    where = NamedSharding(own.mesh, PartitionSpec(None, *own.spec)) if isinstance(own, NamedSharding) else None
    return jnp.zeros((layers, *leaf.shape), leaf.dtype, device=where)


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
