"""The training loop."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from .._arguments import check_callable, check_model, path_of
from .._config import checks_itself
from .._language_model import AbstractLanguageModel
from ..evaluation._score import score
from ..layers._dropout import with_dropout
from ._config import TrainConfig, check_run
from ._data import Windows, check_texts
from ._lock import occupied
from ._optimizer import make_optimizer
from ._precision import as_stored, check_trainable, widened
from ._record import check_record, describe_run
from ._state import TrainState, load_state, save_state
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
) -> AbstractLanguageModel:
    """Train `model`; continue from `directory` if this run was interrupted there.

    Weights narrower than float32 are trained in float32, and rounded to their dtype in every model that is returned or
    passed to `keep`. Ctrl-C saves the state of the last completed step.

    **Arguments:**

    - `model`: the model at step 0; it is not consumed.
    - `config`: the run.
    - `train`, `valid`: token ids.
    - `directory`: the folder of the state (`state.eqx`, the previous state, and `run.json`, which records the settings
        of the run). It is created if necessary, and no other run can use it meanwhile.
    - `report`: called every `log_every` steps, and after the last step.
    - `keep`: called with the current model each time the state has been saved.

    **Returns:** the trained model.

    **Raises:** `ValueError` when a text is too short or holds ids that the model does not have, when the model is
    quantised, or when the directory holds another run, is in use, or has only damaged states; `FloatingPointError` when
    the loss or a parameter is no longer finite; `MemoryError` when a step needs more memory than there is; `OSError`
    when the disk is full.
    """
    check_model(model)
    check_run(config, report)
    check_callable("keep", keep)
    path_of("directory", directory)
    windows = check_texts(config, train, valid, model.vocab_size)
    check_trainable(model)
    with_dropout(model, config.dropout)
    with occupied(directory) as folder:
        check_record(folder, describe_run(model, config, train, valid))
        return _train(model, config, windows, valid, folder, report, keep)


def _train(
    model: AbstractLanguageModel,
    config: TrainConfig,
    windows: Windows,
    valid: Int[np.ndarray, " valid_time"],
    directory: Path,
    report: Callable[[Progress], None],
    keep: Callable[[AbstractLanguageModel], None],
) -> AbstractLanguageModel:
    optimizer = make_optimizer(config)
    stored, static = eqx.partition(model, eqx.is_inexact_array)
    params = widened(stored)  # copies: the first update consumes them
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    state = load_state(directory, state) or state
    update = _make_update(config, optimizer, static)

    def so_far() -> AbstractLanguageModel:
        return eqx.combine(as_stored(state.model, stored), static)

    def checkpoint() -> None:
        save_state(directory, state)
        keep(so_far())

    start = kept = int(state.step)
    losses, started, done = [], time.perf_counter(), 0
    try:
        for step in range(start, config.steps):
            value, state = update(jnp.asarray(windows.batch(step)), state)
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
                report(Progress(step + 1, train_loss, valid_loss, speed))
                losses, started, done = [], time.perf_counter(), 0
            if due:
                checkpoint()
                kept = step + 1
    except KeyboardInterrupt:
        leaves = jax.tree.leaves(state)
        # An update that was cut off has consumed the state.
        if not any(leaf.is_deleted() for leaf in leaves) and int(state.step) > kept and _is_finite(leaves):
            checkpoint()
        raise
    if start == config.steps:
        keep(so_far())
    return so_far()


def _make_update(config: TrainConfig, optimizer: optax.GradientTransformation, static: PyTree) -> Callable[..., Any]:
    """`update_of`, compiled. It consumes a batch and a state."""
    step = eqx.filter_jit(update_of(config, optimizer, static), donate="all-except-first")

    def update(batch: Int[Array, "batch time"], state: TrainState):
        try:
            return step(batch, state)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise MemoryError(
                f"a step of {config.batch_size} sequences of {config.context} tokens takes more memory than there is. "
                "Lower `batch_size` or `context`, or train a smaller model."
            ) from error

    return update


def _is_finite(arrays: Iterable[Array]) -> bool:
    return all(bool(jnp.all(jnp.isfinite(array))) for array in arrays)


def _check_finite(arrays: Iterable[Array], step: int) -> None:
    if not _is_finite(arrays):
        raise FloatingPointError(
            f"training diverged: no longer finite at step {step + 1}. Lower `learning_rate` and train into another "
            "directory."
        )
