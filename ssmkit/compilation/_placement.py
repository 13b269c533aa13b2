"""The placement of a program's arguments on devices that are not there, by the rules of `ssmkit.parallel`."""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from ..layers._apart import apart
from ..parallel._mesh import make_mesh, read_axes, said
from ..parallel._placement import shardings
from ._programs import Program, Sizes, form_of, is_form


def mesh_for(axes: Mapping[str, int] | None, devices: list[Any], target: str) -> Mesh | None:
    """The mesh of the first devices of a target; `None` for a single device.

    **Arguments:**

    - `axes`: the sizes of the mesh's axes, by name, or `None`.
    - `devices`: those of the target.
    - `target`: its name, for errors.

    **Raises:** `ValueError` for an axis that does not exist, a size that is none, or more devices than there are.
    """
    if axes is None:
        return None
    sizes = read_axes(axes)
    needed = math.prod(sizes.values())
    if needed > len(devices):
        raise ValueError(
            f"`mesh`: {said(sizes)} takes {needed} devices, and the target {target} has {len(devices)}: name a larger "
            "topology."
        )
    return make_mesh(**sizes, devices=devices[:needed])


def form_on(model: Any, mesh: Mesh | None) -> Any:
    """The model without values, with its fused layers held apart as `ssmkit.shard` holds them on a mesh."""
    form = form_of(model)
    return form if mesh is None else eqx.filter_eval_shape(lambda model: apart(model, mesh.shape["model"]), form)


def placed(program: Program, sizes: Sizes, device: Any) -> Program:
    """The program, with every argument on its devices.

    Weights, and in training the optimiser's state, lie as `ssmkit.shard` places them, or as `ssmkit.fully_shard`. Rows
    are spread over `data`, and the tokens of prompts over `sequence` where it divides their number.

    **Arguments:**

    - `program`: the program, whose arguments have no values.
    - `sizes`: its sizes, with the mesh.
    - `device`: the device of a program without a mesh.

    **Raises:** `ValueError` when `data` does not divide the number of rows.
    """
    mesh = sizes.mesh
    if mesh is None:
        on_device = lambda tree: _put(tree, jax.tree.map(lambda _: SingleDeviceSharding(device), tree))
        return program._replace(
            shared=on_device(program.shared), mapped=on_device(program.mapped), consumed=on_device(program.consumed)
        )
    _check_rows(program, mesh)
    weights = lambda tree: _put(tree, shardings(tree, mesh, fully_sharded=sizes.fully_sharded))
    spec = lambda leaf: NamedSharding(mesh, _row_spec(leaf, mesh, program.time))
    by_row = lambda tree: _put(tree, jax.tree.map(spec, tree))
    return program._replace(
        shared=weights(program.shared),
        mapped=by_row(program.mapped),
        consumed=(by_row if program.consumed_by_row else weights)(program.consumed),
    )


def as_kept(program: Program, results: Any) -> Program:
    """The program whose consumed arrays lie where it leaves them: that is where its next call finds them.

    XLA decides how caches lie over `model`. They are updated in place only if they lie so before.

    **Arguments:**

    - `program`: a program that has been compiled.
    - `results`: the shardings of its results.

    **Returns:** the program itself, if its arrays lie so already.
    """
    own, kept = (
        [leaf for leaf in jax.tree.leaves(tree) if leaf is not None]
        for tree in (
            jax.tree.map(lambda leaf: leaf if is_form(leaf) else None, program.consumed),
            program.kept(results),
        )
    )
    if all(form.sharding.is_equivalent_to(left, form.ndim) for form, left in zip(own, kept, strict=True)):
        return program
    left = iter(kept)
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=next(left)) if is_form(leaf) else leaf
    return program._replace(consumed=jax.tree.map(place, program.consumed))


def local(model: Any, mesh: Mesh) -> Any:
    """The model with the arrays that one device multiplies with: its share of what is spread over `model`."""
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    return jax.tree.map(lambda leaf: shape(leaf) if is_form(leaf) else leaf, _put(model, shardings(model, mesh)))


def bytes_on_one(form: jax.ShapeDtypeStruct) -> int:
    """The bytes of a placed array without values on one device."""
    shape = form.shape if form.sharding is None else form.sharding.shard_shape(form.shape)
    return math.prod(shape) * form.dtype.itemsize


def _row_spec(leaf: Any, mesh: Mesh, time: int | None) -> PartitionSpec:
    """The spec of an array of rows, whose second axis is that of tokens if there are so many as a prompt has."""
    if not is_form(leaf) or not leaf.shape:
        return PartitionSpec()
    is_tokens = time is not None and leaf.shape[1:] == (time,) and time % mesh.shape["sequence"] == 0
    return PartitionSpec("data", "sequence") if is_tokens else PartitionSpec("data")


def _check_rows(program: Program, mesh: Mesh) -> None:
    data = mesh.shape["data"]
    for leaf in filter(is_form, jax.tree.leaves(program.mapped)):
        if leaf.shape[0] % data:
            raise ValueError(f"`batch` must be a multiple of the mesh's `data` = {data}, got {leaf.shape[0]}.")


def _put(tree: Any, where: Any) -> Any:
    put = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    choose = lambda leaf, sharding: put(leaf, sharding) if is_form(leaf) and isinstance(sharding, Sharding) else leaf
    return jax.tree.map(choose, tree, where)
