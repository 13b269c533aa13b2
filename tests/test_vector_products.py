"""Products of a large float32 matrix with one vector, whose parts the threads of a CPU share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, relative_error
from layer_inputs import normal

import ssmkit
from ssmkit.layers._linear import StackedLinear
from ssmkit.layers._matrix import project, project_one


# More than XLA's CPU backend gives to one task. Rows divide into 4, 2 and 1 parts.
SHAPES = pytest.mark.parametrize("rows", [840, 842, 841])
IN = 640


def in_parts(function, *arguments, platform: str) -> bool:
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
    return "batching_dims" in lowered.as_text()


def test_only_a_cpu_multiplies_one_vector_in_parts():
    matrix, x = normal(0, 840, IN), normal(1, IN)
    assert in_parts(project, matrix, x, platform="cpu")
    assert not in_parts(project, matrix, x, platform="tpu")
    assert not in_parts(project, matrix[:512], x, platform="cpu")  # one task


def test_rows_are_multiplied_together():
    """Parts of many rows would be slow, whether the rows are an axis or come from `jax.vmap`."""
    matrix, x = normal(0, 840, IN), normal(1, 3, IN)
    assert not in_parts(project, matrix, x, platform="cpu")
    assert not in_parts(jax.vmap(project, in_axes=(None, 0)), matrix, x, platform="cpu")


@SHAPES
def test_parts_are_the_product(rows):
    """And so are its derivatives in both arguments, and rows from `jax.vmap`. A sum of 640 terms is exact to 1e-6."""
    matrix, x, weights = normal(0, rows, IN), normal(1, IN), normal(2, rows)
    exact = np.asarray(matrix, np.float64) @ np.asarray(x, np.float64)
    assert relative_error(jit(project)(matrix, x), exact) < 1e-6
    mapped = jit(jax.vmap(project, in_axes=(None, 0)))(matrix, jnp.stack([x, -x]))
    assert relative_error(mapped, np.stack([exact, -exact])) < 1e-6
    of_matrix, of_x = jit(jax.grad(lambda matrix, x: project(matrix, x) @ weights, argnums=(0, 1)))(matrix, x)
    assert relative_error(of_matrix, np.outer(weights, x)) < 1e-6
    assert relative_error(of_x, np.asarray(weights, np.float64) @ np.asarray(matrix, np.float64)) < 1e-6


@pytest.mark.parametrize("kind", ["float32", "int8", "bfloat16"])
def test_one_of_several_matrices_in_tiles(kind):
    """On a CPU, few rows meet a matrix in tiles. The results are those of the matrix alone."""
    layer = StackedLinear(3, IN, 420, key=jax.random.key(0))
    layer = layer if kind == "float32" else ssmkit.quantize(layer, kind)
    index, loops = jnp.int32(2), lambda text: text.count("stablehlo.while")
    alone = jax.tree.map(lambda all: all[2], layer.weight)
    for shape in [(IN,), (2, IN), (17, IN)]:
        x = normal(1, *shape)
        assert relative_error(jit(project_one)(layer.weight, index, x), project(alone, x)) < 1e-6
        traced = jax.jit(project_one).trace(layer.weight, index, x)
        texts = [traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu")]
        assert [loops(text) for text in texts] == [int(shape != (17, IN)), 0]
