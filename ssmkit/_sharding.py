"""The mesh in force, and meshes with explicit axes, as `jax.make_mesh` makes them from jax 0.12 on."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike


Function = TypeVar("Function", bound=Callable[..., Any])


def axis_size(axis: str) -> int:
    """The number of devices along an axis of the mesh in force (`jax.set_mesh`); 1 without a mesh or such an axis.

    It is 1 too inside a `jax.shard_map` over the axis, where a program sees one device's part only.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return 1 if types.get(axis, AxisType.Manual) is AxisType.Manual else mesh.shape[axis]


def over_sequence(x: ArrayLike, axis: int) -> Array:
    """Spread an axis of tokens over the axis `sequence` of the mesh in force, if there is one and it divides them."""
    array, devices = jnp.asarray(x), axis_size("sequence")
    return array if devices == 1 or array.shape[axis] % devices else _constrained(array, axis, "sequence")


def undivided(x: Array, axis: int, name: str) -> Array:
    """Give every device along an axis of the mesh in force, if there is one of this name, the whole of an axis."""
    return x if axis_size(name) == 1 else _constrained(x, axis, None)


def _constrained(x: Array, axis: int, name: str | None) -> Array:
    """Spread one axis over an axis of the mesh in force; XLA decides about the others."""
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = name
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def explicit_sharding(x: Any) -> NamedSharding | None:
    """The sharding of an array on a mesh with an explicit axis; `None` for any other array."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def fetched(array: Any) -> np.ndarray:
    """The values of a whole array, also of one that lies on several hosts, all of which must call this."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


def sharded_by_xla(function: Function) -> Function:
    """Make the explicit axes of a mesh automatic inside a function: XLA then lays out intermediate values.

    Otherwise JAX requires a sharding at every gather and reshape. The first result is spread along its first axis as
    the inputs are, which is time for many tokens, and a state is spread as the given state. All else is replicated,
    except along the axes that an outer `jax.vmap` maps over: a batch keeps its sharding. Without explicit axes nothing
    changes.

    **Arguments:**

    - `function`: a method that takes inputs and perhaps a state, and returns outputs, or outputs and the new state.
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

        replicated = NamedSharding(mesh, PartitionSpec())
        _, inputs, state, *_ = (*arguments, *options.values(), None, None, None)
        results = jax.eval_shape(jax.sharding.auto_axes(run, out_sharding=replicated), arrays)
        where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(results, inputs, state))
        return jax.sharding.auto_axes(run, out_sharding=where)(arrays)

    return wrapped  # pyright: ignore[reportReturnType]


def _specs(results: Any, inputs: Any, state: Any) -> Any:
    """The partition spec of every result, by those of the arguments."""
    along = {jnp.shape(leaf)[:1]: _spec_of(leaf)[:1] for leaf in jax.tree.leaves(inputs) if jnp.ndim(leaf) > 0}
    by_inputs = lambda leaf: PartitionSpec(*along.get(leaf.shape[:1], ()))
    if not isinstance(results, tuple) or len(results) != 2 or not _same_form(results[1], state):
        return jax.tree.map(by_inputs, results)
    return jax.tree.map(by_inputs, results[0]), jax.tree.map(_spec_of, eqx.filter(state, eqx.is_array))


def _spec_of(leaf: Any) -> PartitionSpec:
    return jax.typeof(leaf).sharding.spec if eqx.is_array(leaf) else PartitionSpec()


def _same_form(a: Any, b: Any) -> bool:
    forms = [[(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)] for tree in (a, b)]
    return forms[0] == forms[1] and jax.tree.structure(a) == jax.tree.structure(b)


def _explicit_mesh(arrays: Any) -> Any:
    """The mesh of the first array that lies on one with an explicit axis, or `None`."""
    shardings = map(explicit_sharding, jax.tree.leaves(arrays))
    return next((sharding.mesh for sharding in shardings if sharding is not None), None)
