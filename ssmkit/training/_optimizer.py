"""AdamW with warm-up and a cosine; decay on projections and embeddings only."""

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from .._layers import Embedding, Linear
from ._config import TrainConfig


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping, then AdamW (arXiv 1711.05101) on a linear warm-up followed by a cosine."""
    warmup = min(config.warmup_steps, config.steps)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(config.steps, warmup + 1),
        end_value=config.final_learning_rate,
    )
    adamw = optax.adamw(schedule, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=decay_mask)
    chain = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        """optax relies on JAX's default promotion of dtypes, whatever the user has set."""
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)


def decay_mask(params: PyTree) -> PyTree:
    """True for the weights of `Linear` and `Embedding`, false for everything else.

    So the decay rates, step sizes, skips, norms, biases and convolutions of any model are left alone without naming
    them.
    """

    def mask(node: PyTree) -> PyTree:
        nothing = jax.tree.map(lambda _: False, node)
        if isinstance(node, Linear | Embedding):
            return eqx.tree_at(lambda m: m.weight, nothing, True)
        return nothing

    return jax.tree.map(mask, params, is_leaf=lambda node: isinstance(node, Linear | Embedding))
