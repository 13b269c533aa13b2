"""Where the state and the batches of a run lie: on one device, or spread over a mesh."""

import contextlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Int, PyTree

from .._language_model import AbstractLanguageModel
from ..layers._apart import Apart, Shared, apart, together
from ..parallel._mesh import automatic, check_mesh, make_mesh, mesh_of
from ..parallel._place import place_of as place_of_model
from ..parallel._placement import placed, shardings
from ._config import TrainConfig
from ._data import Windows
from ._hosts import many
from ._precision import widened
from ._state import TrainState


def mesh_for(mesh: Any, model: PyTree, config: TrainConfig) -> Mesh | None:
    """The mesh of a run: the given one, that on which the model lies, or all devices of many hosts along `data`.

    **Raises:** `ValueError` when the mesh has other axes, or when its axis `data` does not divide a batch.
    """
    if mesh is None:
        mesh = mesh_of(model) or (make_mesh(data=jax.device_count()) if many() else None)
    if mesh is None:
        return None
    mesh = automatic(check_mesh(mesh))
    if config.batch_size % mesh.shape["data"]:
        raise ValueError(
            f"`batch_size` must be a multiple of the {mesh.shape['data']} devices along the mesh's axis `data`, got "
            f"{config.batch_size}."
        )
    return mesh


def in_force(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """A context in which programs know the mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def start(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0. It holds copies of the weights, because the first update consumes them."""
    params = widened(params)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def place_of(state: TrainState, mesh: Mesh | None, *, fully_sharded: bool) -> TrainState:
    """The sharding of every array of a state."""
    if mesh is not None:
        return shardings(state, mesh, fully_sharded=fully_sharded)
    (device,) = jnp.zeros(()).devices()
    return jax.tree.map(lambda _: SingleDeviceSharding(device), state)


def start_on(params: PyTree, optimizer: optax.GradientTransformation, where: TrainState) -> TrainState:
    """As `start`, placed. No device ever holds a whole state of which it is to keep a part."""
    make = jax.jit(lambda params: start(params, optimizer), out_shardings=where)
    return make(placed(params, where.model))


# A run is described and saved as one device has it, whatever the mesh: with fused layers whole.


def fused(model: AbstractLanguageModel) -> AbstractLanguageModel:
    """The model as it is on one device, if it was held apart for another mesh."""
    is_part = lambda node: isinstance(node, Apart | Shared)
    if not any(map(is_part, jax.tree.leaves(model, is_leaf=is_part))):
        return model
    return eqx.filter_jit(together)(place_of_model(model)[1])


def as_saved(state: TrainState, mesh: Mesh | None, *, fully_sharded: bool) -> TrainState:
    """The state with fused layers whole, on the same devices."""
    if mesh is None or mesh.shape["model"] == 1:
        return state
    where = place_of(jax.eval_shape(together, state), mesh, fully_sharded=fully_sharded)
    return jax.jit(together, out_shardings=where)(state)


def as_trained(state: TrainState, mesh: Mesh | None, *, fully_sharded: bool) -> TrainState:
    """Undo `as_saved`."""
    if mesh is None or mesh.shape["model"] == 1:
        return state
    separate = lambda state: apart(state, mesh.shape["model"])
    where = place_of(jax.eval_shape(separate, state), mesh, fully_sharded=fully_sharded)
    return jax.jit(separate, out_shardings=where)(state)


def batch_on(windows: Windows, step: int, mesh: Mesh | None) -> Int[Array, "batch context_plus_one"]:
    """The tokens of one step, of which each process reads the rows of its own devices."""
    if mesh is None:
        return jnp.asarray(windows.batch(step))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    own = lambda index: windows.batch(step, slice(None) if index is None else index[0])
    return jax.make_array_from_callback(windows.shape, rows, own)
