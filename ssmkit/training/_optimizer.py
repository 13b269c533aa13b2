"""AdamW with a warm-up, a cosine schedule, and weight decay on projections and embeddings only."""

import jax
import optax
from jaxtyping import PyTree

from ..layers._array_kinds import matrix_mask
from ._config import TrainConfig


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Build the optimiser: clipping, then AdamW (arXiv 1711.05101) with a linear warm-up followed by a cosine."""
    warmup = min(config.warmup_steps, config.steps)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(config.steps, warmup + 1),
        end_value=config.final_learning_rate,
    )
    adamw = optax.adamw(schedule, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=matrix_mask)
    chain = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        """Update with JAX's default promotion of dtypes, on which optax relies, whatever the user has set."""
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)
