"""One step of training, as a function of arrays."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ..evaluation._score import cross_entropy
from ..layers._dropout import with_dropout
from ._config import TrainConfig
from ._state import TrainState


Update = Callable[[Int[Array, "batch time"], TrainState], tuple[Float[Array, ""], TrainState]]


def update_of(config: TrainConfig, optimizer: optax.GradientTransformation, static: PyTree) -> Update:
    """The function from a batch and a state to the loss before the step and the state after it.

    **Arguments:**

    - `config`: the run.
    - `optimizer`: the optimiser of `make_optimizer`.
    - `static`: the model without its weights, which are in the state.
    """
    base_key = jax.random.key(config.seed, impl="rbg")

    def update(batch: Int[Array, "batch time"], state: TrainState) -> tuple[Float[Array, ""], TrainState]:
        keys = jax.random.split(jax.random.fold_in(base_key, state.step), batch.shape[0])

        def loss(params):
            model = with_dropout(eqx.combine(params, static), config.dropout)

            def sequence(tokens, key):
                cache = model.reserve(model.init_cache(), tokens.size - 1)
                logits, _ = model.forward(tokens[:-1], cache, key=key)
                return cross_entropy(logits, tokens[1:])

            return jnp.mean(jax.vmap(sequence)(batch, keys))

        value, gradient = jax.value_and_grad(loss)(state.model)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.model)
        return value, TrainState(eqx.apply_updates(state.model, updates), optimizer_state, state.step + 1)

    return update
