"""The training loop."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._language_model import AbstractLanguageModel
from .._score import cross_entropy, score
from ._config import TrainConfig
from ._data import Windows
from ._optimizer import make_optimizer
from ._state import TrainState, load_state, save_state


class Progress(NamedTuple):
    """What a run reports: `valid_loss` is `None` between evaluations. Losses are nats per token."""

    step: int
    train_loss: float
    valid_loss: float | None
    tokens_per_second: float


def fit(
    model: AbstractLanguageModel,
    config: TrainConfig,
    train: Int[np.ndarray, " train_time"],
    valid: Int[np.ndarray, " valid_time"],
    directory: Path,
    report: Callable[[Progress], None],
) -> AbstractLanguageModel:
    """Train `model`; continue from `directory` if a run was interrupted there.

    **Arguments:**

    - `model`: the model at step 0; it is not consumed.
    - `config`: the run.
    - `train`, `valid`: token ids.
    - `directory`: where the state is kept (`state.eqx`).
    - `report`: called every `log_every` steps, and after the last.

    **Returns:** the trained model.

    **Raises:** `ValueError` when a text is too short or a state does not fit; `FloatingPointError` when the loss or a
    parameter is no longer finite.
    """
    windows = check_texts(config, train, valid)
    optimizer = make_optimizer(config)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    params = jax.tree.map(jnp.copy, params)  # the first update consumes them
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    path = directory / "state.eqx"
    if path.exists():
        state = load_state(path, state)
    base_key = jax.random.key(config.seed, impl="rbg")

    @eqx.filter_jit(donate="all-except-first")
    def update(batch: Int[Array, "batch time"], state: TrainState):
        keys = jax.random.split(jax.random.fold_in(base_key, state.step), batch.shape[0])

        def loss(params):
            model = eqx.combine(params, static)

            def sequence(tokens, key):
                logits, _ = model.forward(tokens[:-1], model.init_cache(), dropout=config.dropout, key=key)
                return cross_entropy(logits, tokens[1:])

            return jnp.mean(jax.vmap(sequence)(batch, keys))

        value, gradient = jax.value_and_grad(loss)(state.model)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.model)
        return value, TrainState(eqx.apply_updates(state.model, updates), optimizer_state, state.step + 1)

    losses, started, done = [], time.perf_counter(), 0
    for step in range(int(state.step), config.steps):
        value, state = update(jnp.asarray(windows.batch(step)), state)
        losses.append(value)
        done += 1
        last = step + 1 == config.steps
        evaluate = last or (step + 1) % config.evaluate_every == 0
        keep = last or (step + 1) % config.checkpoint_every == 0
        if evaluate or keep:
            _check_finite(jax.tree.leaves(state.model), step, directory)  # losses are those before an update
        if evaluate or (step + 1) % config.log_every == 0:
            _check_finite(losses, step, directory)
            train_loss = float(np.mean([float(value) for value in losses]))
            speed = done * config.batch_size * config.context / (time.perf_counter() - started)
            valid_loss = score(eqx.combine(state.model, static), valid).nats_per_token if evaluate else None
            report(Progress(step + 1, train_loss, valid_loss, speed))
            losses, started, done = [], time.perf_counter(), 0
        if keep:
            save_state(path, state)
    return eqx.combine(state.model, static)


def check_texts(
    config: TrainConfig, train: Int[np.ndarray, " train_time"], valid: Int[np.ndarray, " valid_time"]
) -> Windows:
    """The batches of a run.

    **Arguments:** as `fit`.

    **Raises:** `ValueError` when either text is too short.
    """
    if len(valid) < 2:
        raise ValueError(f"the validation text has {len(valid)} tokens: at least 2 are needed.")
    return Windows(train, batch_size=config.batch_size, context=config.context, seed=config.seed)


def _check_finite(arrays: Sequence[Array], step: int, directory: Path) -> None:
    if not all(bool(jnp.all(jnp.isfinite(array))) for array in arrays):
        raise FloatingPointError(
            f"training diverged: no longer finite at step {step + 1}. Lower `learning_rate` and run again: it "
            f"continues from the last state kept in {directory}, if there is one."
        )
