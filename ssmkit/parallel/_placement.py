"""The placement of models on a mesh."""

from typing import TypeVar

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from .._types import checks_itself
from ..layers._apart import apart
from ._mesh import check_mesh
from ._specs import partition_specs


Tree = TypeVar("Tree")


@checks_itself
def shard(model: Tree, mesh: Mesh) -> Tree:
    """Place a model on a mesh: heads and channels are spread over `model`, and every row of `data` has a copy.

        mesh = ssmkit.parallel.make_mesh(data=2, model=4)
        model = ssmkit.shard(ssmkit.from_pretrained("..."), mesh)
        ssmkit.generate(model, prompts)

    A projection and the sum that ends its mixer then exchange one sum per mixer and token (Megatron-LM, arXiv
    1909.08053, section 3).

    **Arguments:**

    - `model`: a model, a part of one, or a tree made of models, such as an optimiser's state.
    - `mesh`: a mesh with axes of `parallel.AXES`, by `parallel.make_mesh` or `jax.make_mesh`.

    **Returns:** the model, whose arrays lie on the mesh.

    **Raises:** `ValueError` when `mesh` is none, or has other axes.
    """
    return _placed_apart(model, check_mesh(mesh), fully_sharded=False)


@checks_itself
def fully_shard(model: Tree, mesh: Mesh) -> Tree:
    """Place a model on a mesh as `shard`, with its matrices spread over `data` too (ZeRO-3, arXiv 1910.02054).

    It is for training: memory per device falls with the number of devices, and matrices are gathered where they are
    used.

    **Arguments**, **Returns** and **Raises:** as `shard`.
    """
    return _placed_apart(model, check_mesh(mesh), fully_sharded=True)


def shardings(tree: PyTree, mesh: Mesh, *, fully_sharded: bool = False) -> PyTree[NamedSharding]:
    """The sharding of every leaf; arguments are those of `partition_specs`."""
    specs = partition_specs(tree, mesh, fully_sharded=fully_sharded)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def _placed_apart(model: Tree, mesh: Mesh, *, fully_sharded: bool) -> Tree:
    model = apart(model, mesh.shape.get("model", 1))
    return placed(model, shardings(model, mesh, fully_sharded=fully_sharded))


def placed(tree: Tree, where: PyTree[NamedSharding]) -> Tree:
    """The tree with every array on its sharding. All arrays are placed by one call."""
    is_array = jax.tree.map(eqx.is_array, tree)
    arrays, others = eqx.partition(tree, is_array)
    return eqx.combine(jax.device_put(arrays, eqx.filter(where, is_array)), others)
