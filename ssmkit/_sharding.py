"""The mesh in force, and meshes with explicit axes, as `jax.make_mesh` makes them from jax 0.12 on."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


Function = TypeVar("Function", bound=Callable[..., Any])


def axis_size(axis: str) -> int:
    """The number of devices along an axis of the mesh in force (`jax.set_mesh`); 1 without a mesh or such an axis.

    It is 1 too inside a `jax.shard_map` over the axis, where a program sees one device's part only.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return 1 if types.get(axis, AxisType.Manual) is AxisType.Manual else mesh.shape[axis]


def sharded_by_xla(function: Function) -> Function:
    """Make the explicit axes of a mesh automatic inside a function: XLA then lays out intermediate values.

    Otherwise JAX requires a sharding at every gather and reshape. Results are replicated, except along the axes that an
    outer `jax.vmap` maps over: a batch keeps its sharding. Without explicit axes nothing changes.
    """

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        arrays, others = eqx.partition((arguments, options), eqx.is_array)
        mesh = _explicit_mesh(arrays)
        if mesh is None:
            return function(*arguments, **options)

        def run(arrays: Any) -> Any:
            arguments, options = eqx.combine(arrays, others)
            return function(*arguments, **options)

        return jax.sharding.auto_axes(run, out_sharding=NamedSharding(mesh, PartitionSpec()))(arrays)

    return wrapped  # pyright: ignore[reportReturnType]


def _explicit_mesh(arrays: Any) -> Any:
    """The mesh of the first array that lies on one with an explicit axis, or `None`."""
    meshes = (jax.typeof(array).sharding.mesh for array in jax.tree.leaves(arrays))
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
