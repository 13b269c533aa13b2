"""Where the programs of a model run, and how rows lie there."""

import abc
import contextlib
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ._mesh import check_mesh, mesh_of


Tree = TypeVar("Tree")


class AbstractPlace(abc.ABC):
    """The devices of a model. A program over rows puts its arrays there, and its results stay there."""

    @property
    @abc.abstractmethod
    def sizes(self) -> dict[str, int]:
        """The number of devices along the axes of the mesh; without a mesh there are none."""

    @abc.abstractmethod
    def active(self) -> AbstractContextManager[Any]:
        """The context in which programs are traced and run: the mesh is in force."""

    @abc.abstractmethod
    def put(self, rows: Tree) -> Tree:
        """Put rows that the host holds on the devices. Other leaves than arrays stay as they are."""

    @abc.abstractmethod
    def take(self, rows: Tree) -> Tree:
        """Bring rows that may lie on other devices to these. What lies here already is not copied."""

    @abc.abstractmethod
    def give(self, rows: Tree) -> Tree:
        """The rows of a result, as the user gets them."""


class OneDevice(AbstractPlace):
    """A place without a mesh: JAX's default device, or the one that the model was put on."""

    @property
    def sizes(self) -> dict[str, int]:
        """None."""
        return {}

    def active(self) -> AbstractContextManager[Any]:
        """Nothing is in force."""
        return contextlib.nullcontext()

    def put(self, rows: Tree) -> Tree:
        """As `AbstractPlace.put`."""
        arrays, others = eqx.partition(rows, eqx.is_array)
        return eqx.combine(jax.device_put(arrays), others)

    def take(self, rows: Tree) -> Tree:
        """As `AbstractPlace.take`: only rows on a mesh are moved.

        **Raises:** `ValueError` when a part of the rows lies on another host.
        """
        first = next((leaf for leaf in jax.tree.leaves(rows) if isinstance(leaf, jax.Array)), None)
        if first is None or not isinstance(first.sharding, NamedSharding):
            return rows
        if not first.is_fully_addressable:
            raise ValueError(
                f"the rows lie on {len(first.sharding.device_set)} devices, some of other hosts, and the model on one: "
                "put the model on the mesh of the rows by `ssmkit.shard`."
            )
        return self.put(jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, rows))

    def give(self, rows: Tree) -> Tree:
        """The rows themselves."""
        return rows


class OverMesh(AbstractPlace):
    """A mesh: rows are spread over `data`, and other axes of their arrays stay spread as they are.

    Programs see a mesh with automatic axes, whatever the user's mesh has: XLA lays out what they compute.
    """

    def __init__(self, mesh: Mesh):
        """**Arguments:** `mesh`: the mesh on which the user put the model."""
        self._given = check_mesh(mesh)
        self._mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))

    @property
    def sizes(self) -> dict[str, int]:
        """As `AbstractPlace.sizes`."""
        return dict(self._mesh.shape)

    def active(self) -> AbstractContextManager[Any]:
        """The mesh is in force."""
        return jax.set_mesh(self._mesh)

    def put(self, rows: Tree) -> Tree:
        """As `AbstractPlace.put`. Where `data` does not divide the number of rows, every device has all of them."""
        return self._placed(rows, lambda x: NamedSharding(self._mesh, self._spec(x)))

    def take(self, rows: Tree) -> Tree:
        """As `AbstractPlace.take`, spread as by `put`."""
        return self.put(rows)

    def give(self, rows: Tree) -> Tree:
        """As `put`, on the user's own mesh."""
        return self._placed(rows, lambda x: NamedSharding(self._given, self._spec(x)))

    def model(self, model: Tree) -> Tree:
        """The model with its arrays as they lie, on the mesh with automatic axes. Nothing is copied."""
        if self._mesh == self._given:
            return model
        spec = lambda x: x.sharding.spec if isinstance(x.sharding, NamedSharding) else PartitionSpec()
        return self._placed(model, lambda x: NamedSharding(self._mesh, spec(x)))

    def _spec(self, x: Any) -> PartitionSpec:
        """The spec of an array of rows. On these devices, the axes after the first stay spread as they are."""
        devices = self._mesh.shape.get("data", 1)
        names = ["data" if devices > 1 and x.ndim > 0 and x.shape[0] % devices == 0 else None]
        sharding = getattr(x, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.shape_tuple == self._mesh.shape_tuple:
            names += sharding.spec[1:]
        while names and names[-1] is None:
            names.pop()
        return PartitionSpec(*names)

    @staticmethod
    def _placed(tree: Tree, sharding: Any) -> Tree:
        arrays, others = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, jax.tree.map(sharding, arrays)), others)


_ONE_DEVICE = OneDevice()


def place_of(model: Tree) -> tuple[AbstractPlace, Tree]:
    """Where a model lies, and the model as programs take it there. Its first array decides.

    **Raises:** `ValueError` when it lies on a mesh with other axes than `AXES`.
    """
    mesh = mesh_of(model)
    if mesh is None:
        return _ONE_DEVICE, model
    place = OverMesh(mesh)
    return place, place.model(model)
