"""A matrix for the tests of narrow products, stored narrow, and its exact entries."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import over
from registry import LANGUAGE_MODELS

from ssmkit import Int8Matrix
from ssmkit.layers import _quantize


KINDS = ("int8", "bfloat16")
FLAGSHIP = over(LANGUAGE_MODELS, "mamba2-groups2-biases-limits-D_has_hdim-tied")
# Products.


OUT, IN = 300, 256  # float32 products of so many terms are right to 3e-7
ON_CPU = jax.default_backend() == "cpu"  # elsewhere inputs meet a bfloat16 matrix rounded
# On a CPU the inputs of an 8-bit matrix keep 15 bits of the largest one: see `half_step`. Elsewhere they are bfloat16.
BOUND = {"int8": 1e-4 if ON_CPU else 2**-7, "bfloat16": 5e-7 if ON_CPU else 2**-7}


def random_matrix(seed: int = 0, out: int = OUT) -> jax.Array:
    """Rows of very different size, and one of zeros."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(out, IN)) * np.exp(3.0 * rng.normal(size=(out, 1)))
    rows[out // 2] = 0.0
    return jnp.asarray(rows, jnp.float32)


def narrow(kind: str, matrix: jax.Array | None = None):
    return _quantize.NARROW[kind](random_matrix() if matrix is None else matrix)


def exact(matrix) -> np.ndarray:
    """The matrix that is stored, in float64."""
    if isinstance(matrix, Int8Matrix):
        return np.asarray(matrix.values, np.float64) * np.asarray(matrix.scale, np.float64)[..., None]
    return np.asarray(matrix).astype(np.float64)


def worst(got, matrix, x) -> float:
    """The largest error of any output, relative to the largest output."""
    expected = np.asarray(x, np.float64) @ exact(matrix).T
    return float(np.max(np.abs(np.asarray(got) - expected)) / np.max(np.abs(expected)))


def half_step(matrix, x) -> np.ndarray:
    """The largest error of each output of an 8-bit matrix, if every input is off by half a step of two digits."""
    largest = np.max(np.abs(np.asarray(x, np.float64)), axis=-1, keepdims=True)
    return largest / (2 * 127 * 254) * np.sum(np.abs(exact(matrix)), axis=-1)


def inputs(*shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(1).normal(size=(*shape, IN)), jnp.float32)
