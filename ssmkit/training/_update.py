"""One step of training, as a function of arrays, on one device or over a mesh."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from ..evaluation._score import cross_entropy
from ..layers._dropout import with_dropout
from ..parallel._placement import shardings
from ._config import TrainConfig
from ._gathered import WHOLE, gathered
from ._state import TrainState


Update = Callable[[Int[Array, "batch time"], TrainState], tuple[Float[Array, ""], TrainState]]
Gradient = Callable[[PyTree, Int[Array, "batch time"], Key[Array, " batch"]], tuple[Float[Array, ""], PyTree]]


def update_of(
    config: TrainConfig, optimizer: optax.GradientTransformation, static: PyTree, mesh: Mesh | None = None
) -> Update:
    """The function from a batch and a state to the loss before the step and the state after it.

    **Arguments:**

    - `config`: the run.
    - `optimizer`: the optimiser of `make_optimizer`.
    - `static`: the model without its weights, which are in the state.
    - `mesh`: the mesh of the state and the batch, of `parallel._mesh.automatic`; `None` for one device. It must be in
        force while the function is traced.
    """
    base_key = jax.random.key(config.seed, impl="rbg")

    def loss(
        params: PyTree, batch: Int[Array, "batch time"], keys: Key[Array, " batch"], axes: PyTree[int] | None = None
    ):
        model = with_dropout(eqx.combine(params, static), config.dropout)
        if axes is not None:
            model = gathered(model, axes)

        def sequence(tokens, key):
            cache = model.reserve(model.init_cache(), tokens.size - 1)
            logits, _ = model.forward(tokens[:-1], cache, key=key)
            return cross_entropy(logits, tokens[1:])

        return jnp.mean(jax.vmap(sequence)(batch, keys))

    if mesh is None or mesh.shape["data"] == 1 or min(mesh.shape.values()) > 1:  # XLA ends itself at three axes
        gradient_of = jax.value_and_grad(loss)
    else:
        gradient_of = _over_rows(loss, mesh, config.fully_sharded)
    settled = (lambda tree: tree) if mesh is None else lambda tree: _constrained(tree, mesh, config.fully_sharded)

    def update(batch: Int[Array, "batch time"], state: TrainState) -> tuple[Float[Array, ""], TrainState]:
        keys = jax.random.split(jax.random.fold_in(base_key, state.step), batch.shape[0])
        value, gradient = gradient_of(state.model, batch, keys)
        updates, optimizer_state = optimizer.update(settled(gradient), state.optimizer, state.model)
        return value, settled(TrainState(eqx.apply_updates(state.model, updates), optimizer_state, state.step + 1))

    return update


def _over_rows(loss: Callable[..., Float[Array, ""]], mesh: Mesh, fully_sharded: bool) -> Gradient:
    """The value and the gradient of a mean over rows, where every device along `data` has rows of its own.

    Gradients of matrices that are spread over `data` are summed where they are gathered, and all others at the end.
    XLA's partitioner lays the other axes of the mesh out.
    """
    devices = mesh.shape["data"]

    def gradient_of(params: PyTree, batch: Int[Array, "batch time"], keys: Key[Array, " batch"]):
        axes = jax.tree.map(_axis_of_rows, shardings(params, mesh, fully_sharded=fully_sharded))
        specs = jax.tree.map(_over_rows_only, axes)

        def of_own_rows(params: PyTree, batch: Int[Array, "batch time"], keys: Key[Array, " batch"]):
            share = lambda params: loss(params, batch, keys, axes) / devices
            value, gradient = jax.value_and_grad(share)(params)
            is_whole = jax.tree.map(lambda axis: axis == WHOLE, axes)
            own, parts = eqx.partition(gradient, is_whole)
            value, own = jax.lax.psum((value, own), "data")
            return value, eqx.combine(own, parts)

        rows = PartitionSpec("data")
        return jax.shard_map(
            of_own_rows,
            mesh=mesh,
            in_specs=(specs, rows, rows),
            out_specs=(PartitionSpec(), specs),
            axis_names={"data"},
            check_vma=False,
        )(params, batch, keys)

    return gradient_of


def _axis_of_rows(sharding: NamedSharding) -> int:
    """The axis of an array that is spread over `data`, or `WHOLE`."""
    return sharding.spec.index("data") if "data" in sharding.spec else WHOLE


def _over_rows_only(axis: int) -> PartitionSpec:
    return PartitionSpec() if axis == WHOLE else PartitionSpec(*[None] * axis, "data")


def _constrained(tree: Any, mesh: Mesh, fully_sharded: bool) -> Any:
    """The tree, laid out as the rule table says."""
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh, fully_sharded=fully_sharded))
