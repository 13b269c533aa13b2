"""Products with narrow matrices: as exact as those of float32, whatever the size of their entries."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, relative_error
from narrow_matrices import BOUND, IN, KINDS, ON_CPU, OUT, exact, half_step, inputs, narrow, random_matrix, worst

from ssmkit.layers import _quantize
from ssmkit.layers._matrix import look_up, project


GRADIENT_BOUND = {kind: 2e-6 if ON_CPU else 2**-7 for kind in KINDS}


@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (5, 20)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_as_exact_as_those_of_float32(kind, shape):
    matrix, x = narrow(kind), inputs(*shape)
    y = jit(project)(matrix, x)
    assert y.dtype == jnp.float32 and y.shape == (*shape, OUT)
    assert worst(y, matrix, x) <= BOUND[kind]


@pytest.mark.skipif(not ON_CPU, reason="elsewhere inputs are bfloat16")
def test_inputs_of_8_bit_matrices_are_off_by_half_a_step():
    """Every output is within the bound, and integers are exact: only the inputs are rounded."""
    matrix, x = narrow("int8"), inputs(7)
    expected = np.asarray(x, np.float64) @ exact(matrix).T
    error = np.abs(np.asarray(jit(project)(matrix, x)) - expected)
    assert np.all(error <= half_step(matrix, x) + 1e-6 * np.abs(expected))  # half a step is 1.6e-5 of the largest
    steps = jnp.asarray(np.random.default_rng(4).integers(-127 * 254, 127 * 254, (7, IN)), jnp.float32)
    steps = steps.at[:, 0].set(127.0 * 254.0)  # whole numbers of steps need no rounding
    assert worst(jit(project)(matrix, steps), matrix, steps) <= 1e-6


@pytest.mark.skipif(not ON_CPU, reason="elsewhere it has to do")
@pytest.mark.parametrize("kind", KINDS)
def test_one_digit_would_not_do(kind):
    """What the bound rules out: inputs rounded to the width of the matrix."""
    matrix, x = narrow(kind), inputs()
    if kind == "bfloat16":
        rounded = x.astype(jnp.bfloat16).astype(jnp.float32)
    else:
        unit = jnp.max(jnp.abs(x)) / 127
        rounded = jnp.round(x / unit) * unit
    assert worst(jit(project)(matrix, rounded), matrix, x) > 10 * BOUND[kind]


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_a_batch(kind, rows):
    """`vmap` over the inputs is the product with all of them."""
    matrix, x = narrow(kind), inputs(rows)
    y = jit(jax.vmap(project, in_axes=(None, 0)))(matrix, x)
    assert worst(y, matrix, x) <= BOUND[kind]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_any_size(kind, scale):
    matrix, x = narrow(kind), inputs(3, scale=scale)
    assert worst(jit(project)(matrix, x), matrix, x) <= BOUND[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_very_different_size(kind):
    """Sixty orders of magnitude in one vector; each row of a batch has its own scale."""
    matrix = narrow(kind)
    magnitudes = 10.0 ** np.random.default_rng(2).uniform(-30, 30, size=(4, IN))
    x = jnp.asarray(np.asarray(inputs(4)) * magnitudes * np.asarray([[1.0], [1e-30], [1e3], [1.0]]), jnp.float32)
    y = jit(project)(matrix, x)
    assert max(worst(y[i], matrix, x[i]) for i in range(4)) <= BOUND[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_zeros(kind):
    zeros = jnp.zeros((2, IN), jnp.float32)
    assert not np.asarray(jit(project)(narrow(kind), zeros)).any()
    x = zeros.at[0].set(1.0)  # one of two rows
    y = jit(project)(narrow(kind), x)
    assert worst(y, narrow(kind), x) <= BOUND[kind] and not np.asarray(y[1]).any()
    zero = narrow(kind, jnp.zeros((OUT, IN), jnp.float32))
    assert not np.asarray(jit(project)(zero, inputs())).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_does_not_become_finite(kind, rows, bad):
    """Integers have no NaN: it must not come out as a number. Other rows are what they would be without it."""
    matrix, x = narrow(kind, random_matrix(out=64)), inputs(rows)
    y = np.asarray(jit(project)(matrix, x.at[rows // 2, 3].set(bad)))
    values = exact(matrix)[:, 3] != 0
    assert not np.isfinite(y[rows // 2, values]).any()
    others = np.arange(rows) != rows // 2
    assert np.isfinite(y[others]).all()


@pytest.mark.parametrize("shape", [(), (3,), (40,)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_widened_matrix(kind, shape):
    matrix, x = narrow(kind), inputs(*shape)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(*shape, OUT)), jnp.float32)
    got = jit(jax.grad(lambda x: jnp.sum(weights * project(matrix, x))))(x)
    assert got.dtype == jnp.float32
    assert worst(got, exact(matrix).T, weights) <= GRADIENT_BOUND[kind]
    tangent = jit(lambda x: jax.jvp(lambda x: project(matrix, x), (x,), (2.0 * x,))[1])(x)
    assert worst(tangent, matrix, 2.0 * x) <= GRADIENT_BOUND[kind]


@pytest.mark.parametrize("rows", [1, 40])
def test_gradients_of_the_numbers_that_are_stored(rows):
    """Scales and bfloat16 matrices can be trained; 8-bit integers have no gradient."""
    x = inputs(rows)
    matrix = narrow("int8")
    got = eqx.filter_jit(eqx.filter_grad(lambda matrix: jnp.sum(project(matrix, x))))(matrix)
    assert got.values is None
    expected = np.sum(np.asarray(x, np.float64) @ np.asarray(matrix.values, np.float64).T, axis=0)
    assert relative_error(got.scale, expected) <= BOUND["int8"]  # the product itself
    got = jit(jax.grad(lambda matrix: jnp.sum(project(matrix, x))))(narrow("bfloat16"))
    assert got.dtype == jnp.bfloat16
    expected = np.broadcast_to(np.sum(np.asarray(x, np.float64), axis=0), (OUT, IN))
    assert relative_error(got, expected) <= 2**-8


@pytest.mark.parametrize("rows", [1, 40])
def test_wide_inputs(rows):
    """Float64 stays what it is where the matrix is as precise; bfloat16 matrices give float32 on every platform."""
    x = inputs(rows).astype(jnp.float64)
    assert jit(project)(random_matrix().astype(jnp.float64), x).dtype == jnp.float64
    assert jit(project)(narrow("bfloat16"), x).dtype == jnp.float32
    assert jit(project)(random_matrix().astype(jnp.float16), x).dtype == jnp.float32
    y = jit(project)(narrow("int8"), x)
    assert y.dtype == jnp.float64 and worst(y, narrow("int8"), x) <= BOUND["int8"]


@pytest.mark.parametrize(
    "kind, digits, platforms",
    [("int8", "tensor<2x256xi8>", {"cpu", "tpu"}), ("bfloat16", "tensor<3x256xbf16>", {"cpu"})],
)
def test_digits_are_for_platforms_that_multiply_them_quickly(kind, digits, platforms):
    """Elsewhere, and for the many tokens of a prompt on a TPU, a matrix is cast to what it meets."""
    traced = jit(project).trace(narrow(kind), inputs())
    for name in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(name,)).as_text()
        assert (digits in text) == (name in platforms), name
    prompt = jit(project).trace(narrow(kind), jnp.zeros((17, 256), jnp.float32))
    assert "xi8>, tensor" not in "".join(
        line for line in prompt.lower(lowering_platforms=("tpu",)).as_text().splitlines() if "dot_general" in line
    )


@pytest.mark.parametrize("size", [1e-30, 1e20, 1e36, 3e38])
def test_int8_products_of_numbers_of_any_size(size):
    matrix = _quantize.NARROW["int8"](np.asarray([[1.0, 0.0], [0.5, 0.0]], np.float32))
    got = project(matrix, jnp.asarray([size, 0.0], jnp.float32))
    if size > 1e36:  # 127 times as much is no float32
        assert not np.isfinite(got).any()
    else:
        np.testing.assert_allclose(got, np.asarray([1.0, 0.5]) * size, rtol=2e-6)


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_rows_of_a_batch_with_a_large_matrix(kind):
    """XLA's CPU backend once added up the digits of a large matrix's products wrongly, for mapped rows only."""
    rng = np.random.default_rng(0)
    matrix = _quantize.NARROW[kind](rng.standard_normal((50288, 768), np.float32))
    x = jnp.asarray(rng.standard_normal((4, 768), np.float32))
    got = jax.jit(lambda matrix, x: jax.vmap(lambda x: project(matrix, x))(x))(matrix, x)
    one_by_one = jnp.stack([jax.jit(project)(matrix, row) for row in x])
    assert relative_error(got, one_by_one) <= 2e-6


# Rounding.


def test_int8_rounds_by_at_most_half_a_step():
    """Every entry is within half a step of its row; the largest entry of each row is kept."""
    given = np.asarray(random_matrix(out=2500))  # more rows than are narrowed at a time
    matrix = narrow("int8", jnp.asarray(given))
    assert (matrix.values.dtype, matrix.scale.dtype, matrix.shape) == (jnp.int8, jnp.float32, given.shape)
    steps = np.asarray(matrix.scale, np.float64)[:, None]
    assert np.all(np.abs(exact(matrix) - given) <= (0.5 + 1e-4) * steps)
    rows = np.abs(given).max(axis=1) > 0
    assert (np.abs(matrix.values).max(axis=1) == 127 * rows).all()
    np.testing.assert_allclose(np.abs(exact(matrix)).max(axis=1), np.abs(given).max(axis=1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_matrices_of_any_precision_are_rounded(dtype):
    given = jnp.clip(random_matrix(), -1e4, 1e4).astype(dtype)
    assert relative_error(narrow("int8", given).values, narrow("int8", given.astype(jnp.float32)).values) == 0
    assert narrow("bfloat16", given).dtype == jnp.bfloat16


def test_a_matrix_of_nothing():
    assert narrow("int8", jnp.zeros((3, 0), jnp.float32)).shape == (3, 0)
    assert narrow("int8", jnp.zeros((0, 3), jnp.float32)).shape == (0, 3)


def test_rows_are_looked_up():
    matrix = narrow("int8")
    rows = jnp.asarray([[5, 0], [OUT // 2, 5]])
    np.testing.assert_allclose(jit(look_up)(matrix, rows), exact(matrix)[np.asarray(rows)], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_int8_has_no_nan(bad):
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        _quantize.NARROW["int8"](np.asarray([[bad, 1.0], [1.0, 0.0]], np.float32))
