"""Meshes: their axes, and the mesh that is in force."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding

from .._shown import shown
from .._types import checks_itself, whole


AXES = ("data", "model", "sequence")
"""The axes of a mesh: rows are spread over `data`, heads and channels over `model`, and tokens over `sequence`."""


@checks_itself
def make_mesh(*, data: int = 1, model: int = 1, sequence: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh with the axes `data`, `model` and `sequence`, which XLA's partitioner lays programs out over.

        mesh = ssmkit.parallel.make_mesh(data=2, model=4)
        model = ssmkit.shard(model, mesh)

    A mesh of `jax.make_mesh` with these names serves too, whether its axes are automatic or explicit.

    **Arguments:**

    - `data`, `model`, `sequence`: the number of devices along each axis.
    - `devices`: as many devices; `None` takes those of the default backend, in order of their physical neighbourhood.

    **Raises:** `ValueError` for a size that is none, or for another number of devices.
    """
    sizes = read_axes({"data": data, "model": model, "sequence": sequence})
    devices = list(jax.devices() if devices is None else devices)
    needed = math.prod(sizes.values())
    if needed > len(devices):
        raise ValueError(
            f"the mesh {said(sizes)} takes {needed} devices, got {len(devices)}. On a CPU, "
            f"`XLA_FLAGS=--xla_force_host_platform_device_count={needed}` gives as many."
        )
    automatic = (AxisType.Auto,) * len(AXES)
    if needed == len(devices) and devices == jax.devices():
        return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=automatic)
    return Mesh(np.array(devices[:needed]).reshape(*sizes.values()), AXES, axis_types=automatic)


def read_axes(mesh: Any) -> dict[str, int]:
    """Check the sizes of a mesh's axes.

    **Arguments:**

    - `mesh`: the size of some axes, by name; the others have size 1.

    **Returns:** the sizes of all axes, in the order of `AXES`.

    **Raises:** `ValueError` for an axis that does not exist, or a size that is none.
    """
    if not isinstance(mesh, Mapping) or not mesh:
        raise ValueError(f'`mesh` must give the sizes of axes, such as {{"data": 4}}, got {shown(mesh)}.')
    for name, size in mesh.items():
        if name not in AXES:
            raise ValueError(f"`mesh` must have axes of {', '.join(AXES)}, got {shown(name)}.")
        if (whole(size) or 0) < 1:
            raise ValueError(f"`mesh`: the axis `{name}` must have at least 1 device, got {shown(size)}.")
    return {name: int(mesh.get(name, 1)) for name in AXES}


def said(sizes: Mapping[str, int]) -> str:
    """The sizes of axes, as the command line writes them: `data=2,model=4`."""
    return ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "data=1"


@checks_itself
def check_mesh(mesh: Any) -> Mesh:
    """Check a mesh.

    **Raises:** `ValueError` when it is none, or has axes other than `AXES`.
    """
    if not isinstance(mesh, Mesh):
        raise ValueError(f"`mesh` must be a `jax.sharding.Mesh`, got {shown(mesh)}. Make one by `parallel.make_mesh`.")
    if others := [name for name in mesh.axis_names if name not in AXES]:
        raise ValueError(f"`mesh` must have axes of {', '.join(AXES)}, got {', '.join(map(str, others))}.")
    return mesh


def automatic(mesh: Mesh) -> Mesh:
    """The devices of a checked mesh as one with all axes of `AXES`, which XLA's partitioner lays programs out over."""
    missing = tuple(name for name in AXES if name not in mesh.axis_names)
    devices = mesh.devices.reshape(*mesh.devices.shape, *[1] * len(missing))
    return Mesh(devices, (*mesh.axis_names, *missing), axis_types=(AxisType.Auto,) * len(AXES))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh on which the arrays of a tree lie, such as those of a model; `None` if they lie on single devices.

    The first array decides.
    """
    first = next((leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)), None)
    sharding = None if first is None or isinstance(first, Tracer) else first.sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None
