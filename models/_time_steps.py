"""The initial step sizes of several papers' recurrences."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def initial_log_steps(size: int, least: float, most: float, *, key: PRNGKeyArray) -> Float[Array, " size"]:
    """Draw logarithms of step sizes, uniform between those of `time_step_min` and `time_step_max`.

    **Raises:** `ValueError` when the range is empty.
    """
    if not 0 < least <= most:
        raise ValueError(f"`time_step_min` must be above 0 and at most `time_step_max`, got {least} and {most}.")
    return jax.random.uniform(key, (size,), jnp.float32, math.log(least), math.log(most))


def initial_dt_bias(size: int, least: float, most: float, floor: float, *, key: PRNGKeyArray) -> Float[Array, " size"]:
    """Draw biases whose softplus gives log-uniform step sizes, as in the Mamba papers' code.

    The step sizes lie between `least` and `most`, and not below `floor`.
    """
    dt = jnp.maximum(jnp.exp(initial_log_steps(size, least, most, key=key)), floor)
    return dt + jnp.log(-jnp.expm1(-dt))
