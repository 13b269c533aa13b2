"""The placement of a program's arguments on several devices."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from .._shown import shown
from .._types import whole
from ._programs import Program, is_form


AXES = ("data",)


def read_mesh(mesh: Mapping[str, int] | None, available: int) -> dict[str, int]:
    """Check the axes of a mesh.

    **Arguments:**

    - `mesh`: the size of every axis, by name; `None` for a single device.
    - `available`: the number of devices of the target.

    **Raises:** `ValueError` for an axis that does not exist, a size that is none, or more devices than there are.
    """
    if mesh is None:
        return {}
    if not isinstance(mesh, Mapping) or not mesh:
        raise ValueError(f'`mesh` must give the sizes of axes, such as {{"data": 4}}, got {shown(mesh)}.')
    for name, size in mesh.items():
        if name not in AXES:
            raise ValueError(f"`mesh` must have axes of {', '.join(AXES)}, got {shown(name)}.")
        if (whole(size) or 0) < 1:
            raise ValueError(f"`mesh`: the axis `{name}` must have at least 1 device, got {shown(size)}.")
    if math.prod(mesh.values()) > available:
        raise ValueError(
            f"`mesh` takes {math.prod(mesh.values())} devices, and the target has {available}: name a larger topology."
        )
    return dict(mesh)


def placed(program: Program, devices: list[Any], mesh: Mapping[str, int]) -> Program:
    """The program with every argument on its devices. Rows are spread over `data`; everything else is on all devices.

    **Raises:** `ValueError` when `data` does not divide the batch.
    """
    if not mesh:
        single = SingleDeviceSharding(devices[0])
        everywhere = by_row = single
    else:
        count = math.prod(mesh.values())
        grid = Mesh(np.array(devices[:count]).reshape(tuple(mesh.values())), tuple(mesh))
        everywhere, by_row = NamedSharding(grid, PartitionSpec()), NamedSharding(grid, PartitionSpec("data"))
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(program.mapped) if is_form(leaf)}
        if any(size % mesh["data"] for size in sizes):
            raise ValueError(f"`batch` must be a multiple of the mesh's `data` = {mesh['data']}, got {max(sizes)}.")
    put = lambda tree, sharding: jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) if is_form(leaf) else leaf, tree
    )
    return program._replace(
        shared=put(program.shared, everywhere),
        mapped=put(program.mapped, by_row),
        consumed=put(program.consumed, by_row if program.consumed_by_row else everywhere),
    )
