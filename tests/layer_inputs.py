"""What layers are tried on, and how close to float64 they must be."""

import jax.numpy as jnp
import numpy as np
import pytest


# Float32 resolves 6e-8, and no layer here adds up more than a few dozen terms.
BOUND = 5e-7

AXES = pytest.mark.parametrize("axes", [(), (5,), (2, 3)], ids=["none", "time", "batch and time"])


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def precise(array) -> np.ndarray:
    return np.asarray(array, np.float64)
