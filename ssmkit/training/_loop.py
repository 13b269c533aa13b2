"""The training loop."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from .._arguments import check_callable, check_model, path_of
from .._config import checks_itself
from .._language_model import AbstractLanguageModel
from .._memory import memory_errors
from ..evaluation._score import score
from ..layers._apart import apart
from ..layers._dropout import with_dropout
from ._config import TrainConfig, check_run
from ._data import Windows, check_texts
from ._hosts import AllStopped, asked_to_stop, is_first, many, whole
from ._layout import as_saved, as_trained, batch_on, fused, in_force, mesh_for, place_of, start, start_on
from ._lock import occupied
from ._optimizer import make_optimizer
from ._precision import as_stored, check_trainable
from ._record import check_run_of, describe_run
from ._state import States, TrainState
from ._update import update_of


class Progress(NamedTuple):
    """A report of a run. `valid_loss` is `None` between evaluations. Losses are in nats per token."""

    step: int
    train_loss: float
    valid_loss: float | None
    tokens_per_second: float


@checks_itself
def fit(
    model: AbstractLanguageModel,
    config: TrainConfig,
    train: Int[np.ndarray, " train_time"],
    valid: Int[np.ndarray, " valid_time"],
    directory: str | os.PathLike[str],
    report: Callable[[Progress], None],
    keep: Callable[[AbstractLanguageModel], None] = lambda model: None,
    mesh: Mesh | None = None,
) -> AbstractLanguageModel:
    """Train `model`; continue from `directory` if this run was interrupted there.

    Weights narrower than float32 are trained in float32, and rounded to their dtype in every model that is returned or
    passed to `keep`. Ctrl-C saves the state of the last completed step.

    **Arguments:**

    - `model`: the model at step 0; it is not consumed.
    - `config`: the run.
    - `train`, `valid`: token ids.
    - `directory`: the folder of the run: `states`, with the newest states, and `run.json`, which records the settings.
        It is created if necessary, and no other run can use it meanwhile. On many hosts, it must be the same for all.
    - `report`: called every `log_every` steps, and after the last step.
    - `keep`: called with the current model each time a state is saved.
    - `mesh`: the mesh of devices that train together, by `parallel.make_mesh` or `jax.make_mesh`; `None` for that on
        which the model lies, or else for one device. Batches are spread over `data`, and arrays as
        `ssmkit.shard` or, if `config.fully_sharded`, `ssmkit.fully_shard` does. A run may go on with another mesh.

    On many hosts (`jax.distributed.initialize`), every process calls this function with the same arguments. Without a
    mesh, all their devices lie along `data`. Only the first process calls `report` and `keep`, the latter with NumPy
    arrays.

    **Returns:** the trained model, on the mesh if there is one.

    **Raises:** `ValueError` when a text is too short or holds ids that the model does not have, when the model is
    quantised, when the mesh does not fit, or when the directory holds another run, is in use, or has only damaged
    states; `FloatingPointError` when the loss or a parameter is no longer finite; `MemoryError` when a step needs more
    memory than there is; `OSError` when the disk is full.
    """
    check_model(model)
    check_run(config, report)
    check_callable("keep", keep)
    path_of("directory", directory)
    windows = check_texts(config, train, valid, model.vocab_size)
    check_trainable(model)
    with_dropout(model, config.dropout)
    mesh, model = mesh_for(mesh, model, config), fused(model)
    with occupied(directory) as folder:
        check_run_of(folder, describe_run(model, config, train, valid))
        with States(folder, config.keep_states) as states:
            return _train(model, config, windows, valid, states, mesh, report, keep)


def _train(
    model: AbstractLanguageModel,
    config: TrainConfig,
    windows: Windows,
    valid: Int[np.ndarray, " valid_time"],
    states: States,
    mesh: Mesh | None,
    report: Callable[[Progress], None],
    keep: Callable[[AbstractLanguageModel], None],
) -> AbstractLanguageModel:
    optimizer = make_optimizer(config)
    state = _resumed(states, eqx.filter(model, eqx.is_inexact_array), optimizer, mesh, config)
    model = apart(model, 1 if mesh is None else mesh.shape["model"])
    params, static = eqx.partition(model, eqx.is_inexact_array)
    stored = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), params)
    update = _make_update(config, optimizer, static, mesh)

    def so_far() -> AbstractLanguageModel:
        return eqx.combine(as_stored(state.model, stored), static)

    def tell(progress: Progress) -> None:
        if is_first():
            report(progress)

    def hand_over() -> None:
        current = whole(so_far())
        if is_first():
            keep(current)

    def checkpoint() -> None:
        states.save(as_saved(state, mesh, fully_sharded=config.fully_sharded))
        hand_over()

    first = kept = int(state.step)
    losses, started, done = [], time.perf_counter(), 0
    try:
        for step in range(first, config.steps):
            value, state = update(batch_on(windows, step, mesh), state)
            losses.append(value)
            done += 1
            last = step + 1 == config.steps
            evaluate = last or (step + 1) % config.evaluate_every == 0
            due = last or (step + 1) % config.checkpoint_every == 0
            if evaluate or due:
                _check_finite(jax.tree.leaves(eqx.filter(so_far(), eqx.is_inexact_array)), step)  # losses lag behind
            if evaluate or (step + 1) % config.log_every == 0:
                _check_finite(losses, step)
                train_loss = float(np.mean([float(value) for value in losses]))
                speed = done * config.batch_size * config.context / (time.perf_counter() - started)
                valid_loss = score(so_far(), valid).nats_per_token if evaluate else None
                tell(Progress(step + 1, train_loss, valid_loss, speed))
                losses, started, done = [], time.perf_counter(), 0
            if due:
                checkpoint()
                kept = step + 1
            if asked_to_stop(step + 1 - first):
                raise AllStopped
    except KeyboardInterrupt as interrupt:
        leaves = jax.tree.leaves(state)
        # An update that was cut off has consumed the state. One of many processes cannot save alone.
        can_save = isinstance(interrupt, AllStopped) or not many()
        if can_save and not any(leaf.is_deleted() for leaf in leaves) and int(state.step) > kept and _is_finite(leaves):
            checkpoint()
        raise
    if first == config.steps:
        hand_over()
    return so_far()


def _resumed(
    states: States,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
    config: TrainConfig,
) -> TrainState:
    """The newest state on the disk, placed on the devices of this run; without one, the state at step 0."""
    shapes = jax.eval_shape(lambda params: start(params, optimizer), params)
    where = place_of(shapes, mesh, fully_sharded=config.fully_sharded)
    like = jax.tree.map(lambda one, at: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=at), shapes, where)
    state = states.load(like)
    if state is None:
        state = start(params, optimizer) if mesh is None else start_on(params, optimizer, where)
    return as_trained(state, mesh, fully_sharded=config.fully_sharded)


def _make_update(
    config: TrainConfig, optimizer: optax.GradientTransformation, static: PyTree, mesh: Mesh | None
) -> Callable[..., Any]:
    """`update_of`, compiled. It consumes a state."""
    step = eqx.filter_jit(update_of(config, optimizer, static, mesh), donate="all-except-first")
    too_large = (
        f"a step of {config.batch_size} sequences of {config.context} tokens takes more memory than there is. "
        "Lower `batch_size` or `context`, or train a smaller model."
    )

    def update(batch: Int[Array, "batch time"], state: TrainState):
        with memory_errors(lambda _: too_large), in_force(mesh):
            return step(batch, state)

    return update


def _is_finite(arrays: Iterable[Array]) -> bool:
    return all(bool(jnp.all(jnp.isfinite(array))) for array in arrays)


def _check_finite(arrays: Iterable[Array], step: int) -> None:
    if not _is_finite(arrays):
        raise FloatingPointError(
            f"training diverged: no longer finite at step {step + 1}. Lower `learning_rate` and train into another "
            "directory."
        )
