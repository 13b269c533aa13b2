"""The layers that multiply, and the convolution, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import all_finite, jit, relative_error
from layer_inputs import AXES, BOUND, normal, precise
from moe_numpy import ACTIVATIONS

import ssmkit
from ssmkit.layers._matrix import project


def convolution(conv, inputs, state) -> np.ndarray:
    """Tap by tap and channel by channel."""
    weight, window = precise(conv.weight), np.concatenate([precise(state), precise(inputs)])
    channels, kernel_size = weight.shape
    outputs = np.zeros((len(inputs), channels))
    for t in range(len(inputs)):
        for c in range(channels):
            outputs[t, c] = 0.0 if conv.bias is None else precise(conv.bias)[c]
            for j in range(kernel_size):
                outputs[t, c] += weight[c, j] * window[t + j, c]
    return outputs


@pytest.mark.parametrize("kernel_size", [1, 4])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
def test_convolution(kernel_size, dtype, use_bias):
    """Parameters may be narrow, sums are float32; sequences may be shorter than the window."""
    conv = ssmkit.CausalConv1d(3, kernel_size, use_bias=use_bias, dtype=dtype, key=jax.random.key(0))
    assert (conv.weight.dtype, conv.bias is None) == (dtype, not use_bias)
    scan = jit(lambda *inputs: conv.chunk_scan(*inputs))
    state = normal(1, kernel_size - 1, 3)
    for time in (7, 2):
        inputs = normal(2, time, 3)
        outputs, window = scan(inputs, state)
        assert (outputs.dtype, window.dtype) == (jnp.float32, jnp.float32)
        assert relative_error(outputs, convolution(conv, inputs, state)) <= BOUND
        assert np.array_equal(window, np.concatenate([state, inputs])[time:])
    output, window = jit(lambda *inputs: conv.step(*inputs))(inputs[0], state)
    assert relative_error(output, convolution(conv, inputs[:1], state)[0]) <= BOUND
    assert np.array_equal(window, np.concatenate([state, inputs[:1]])[1:])


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7])
def test_the_window_ends_at_the_length(length):
    """Also where it reaches back past the first token."""
    conv = ssmkit.CausalConv1d(3, 5, key=jax.random.key(0))
    inputs, state = normal(1, 7, 3), normal(2, 4, 3)
    outputs, window = conv.chunk_scan(inputs, state, ssmkit.Extent(length=length))
    assert np.array_equal(window, np.concatenate([state, inputs[:length]])[length:])
    assert relative_error(outputs[:length], convolution(conv, inputs[:length], state)) <= BOUND


def test_convolution_without_taps():
    with pytest.raises(ValueError, match="`kernel_size` must be at least 1, got 0"):
        ssmkit.CausalConv1d(3, 0, key=jax.random.key(0))


def test_convolution_is_initialised_as_pytorch_does():
    conv = ssmkit.CausalConv1d(2000, 4, key=jax.random.key(0))
    for parameter in (conv.weight, conv.bias):
        assert -0.5 <= parameter.min() < -0.49
        assert 0.49 < parameter.max() <= 0.5
    assert not np.any(conv.init_state())
    assert conv.init_state().shape == (3, 2000)


# Projections and embeddings.


@AXES
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
def test_linear(axes, use_bias):
    linear = ssmkit.Linear(6, 4, use_bias=use_bias, key=jax.random.key(0))
    linear = jax.tree.map(lambda array: normal(1, *array.shape), linear)
    x = normal(2, *axes, 6)
    expected = precise(x) @ precise(linear.weight).T + (precise(linear.bias) if use_bias else 0.0)
    y = jit(lambda x: linear(x))(x)
    assert y.shape == (*axes, 4)
    assert relative_error(y, expected) <= BOUND


@AXES
@pytest.mark.parametrize("kind", [None, "bfloat16", "int8"])
def test_block_diagonal_linear(axes, kind):
    """Each part has its own matrix, products are as exact as those of `Linear`, and gradients those of float32."""
    layer = ssmkit.BlockDiagonalLinear(6, 12, 3, use_bias=True, key=jax.random.key(0))
    layer = jax.tree.map(lambda array: normal(1, *array.shape), layer)
    layer = layer if kind is None else ssmkit.quantize(layer, kind)
    weight = layer.weight
    if isinstance(weight, ssmkit.Int8Matrix):
        assert (weight.values.shape, weight.scale.shape) == ((3, 4, 2), (3, 4))
        weight = precise(weight.values) * precise(weight.scale)[..., None]
    x, back = normal(2, *axes, 6), normal(3, *axes, 12)
    expected = np.einsum("...bi,boi->...bo", precise(x).reshape(*axes, 3, 2), precise(weight))
    y, gradient = jit(lambda x: (layer(x), jax.vjp(layer, x)[1](back)[0]))(x)
    assert y.dtype == jnp.float32
    bound = 1e-4 if kind == "int8" else BOUND  # two inputs of 15 bits each
    assert relative_error(y, expected.reshape(*axes, 12) + precise(layer.bias)) <= bound
    expected = np.einsum("...bo,boi->...bi", precise(back).reshape(*axes, 3, 4), precise(weight))
    assert relative_error(gradient, expected.reshape(*axes, 6)) <= BOUND


@pytest.mark.parametrize("blocks", [0, 4])
def test_blocks_must_divide_the_features(blocks):
    with pytest.raises(ValueError, match=f"`blocks` must divide 6 inputs and 12 outputs, got {blocks}"):
        ssmkit.BlockDiagonalLinear(6, 12, blocks, key=jax.random.key(0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_the_cast_point_of_a_projection(dtype):
    """Products, their sum and the bias are float32; the other operand is as it was on a CPU, and rounded elsewhere."""
    linear = ssmkit.Linear(64, 4, use_bias=True, dtype=dtype, key=jax.random.key(0))
    linear = jax.tree.map(lambda array: normal(1, *array.shape, dtype=dtype), linear)
    assert linear.weight.dtype == linear.bias.dtype == dtype
    x = normal(2, 3, 64)
    y = jit(lambda x: linear(x))(x)
    assert y.dtype == jnp.float32
    operands = [precise(x), precise(x.astype(dtype))]
    exact, rounded = (x @ precise(linear.weight).T + precise(linear.bias) for x in operands)
    expected, other = (exact, rounded) if jax.default_backend() == "cpu" else (rounded, exact)
    assert relative_error(y, expected) <= BOUND
    # A sum or a result in the narrow dtype would be off by 2^-9 or 2^-12, and the other operand by as much.
    assert relative_error(y.astype(dtype), expected) > 100 * BOUND
    assert relative_error(y, other) > 100 * BOUND


def test_linear_is_initialised_as_pytorch_does():
    linear = ssmkit.Linear(16, 3000, use_bias=True, key=jax.random.key(0))
    assert linear.weight.shape == (3000, 16)
    assert -0.25 <= linear.weight.min() < -0.249
    assert 0.249 < linear.weight.max() <= 0.25
    assert not np.any(linear.bias)


@AXES
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_embedding(axes, dtype):
    """Rows, as they are stored."""
    embedding = ssmkit.Embedding(7, 5, dtype=dtype, key=jax.random.key(0))
    tokens = jnp.asarray(np.random.default_rng(0).integers(7, size=axes))
    rows = embedding(tokens)
    assert (rows.shape, rows.dtype, embedding.weight.dtype) == ((*axes, 5), dtype, dtype)
    assert np.array_equal(precise(rows), precise(embedding.weight)[np.asarray(tokens)])


def test_embedding_is_initialised_with_small_normal_rows():
    weight = precise(ssmkit.Embedding(300, 200, key=jax.random.key(0)).weight)
    np.testing.assert_allclose([weight.mean(), weight.std()], [0.0, 0.02], atol=3e-4)


# Activation.


def test_silu_and_its_derivatives_equal_those_of_jax():
    x = jnp.concatenate(
        [jnp.linspace(-120.0, 120.0, 2001, dtype=jnp.float32), jnp.asarray([-1e30, 0.0, 1e30], jnp.float32)]
    )
    ours, theirs = ssmkit.silu, jax.nn.silu
    for _ in range(3):
        got, expected = jax.vmap(ours)(x), jax.vmap(theirs)(x.astype(jnp.float64))
        assert all_finite(got)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
        ours, theirs = jax.grad(ours), jax.grad(theirs)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_that_published_models_name(name):
    x = np.linspace(-9.0, 9.0, 101)
    got = ssmkit.activation_of(name)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, ACTIVATIONS[name](x), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("layer", ["Linear", "BlockDiagonalLinear"])
def test_rows_that_vmap_makes_are_counted(layer, axes):
    """The way for few rows is taken by rows of all sequences together; the results are those of row by row."""
    if layer == "Linear":
        linear = ssmkit.Linear(8, 4, dtype=jnp.bfloat16, key=jax.random.key(0))
    else:
        linear = ssmkit.BlockDiagonalLinear(8, 4, 2, dtype=jnp.bfloat16, key=jax.random.key(0))
    mapped = linear
    for _ in range(axes):
        mapped = jax.vmap(mapped)
    for rows, few in ((16, True), (64, False)):
        x = jax.random.normal(jax.random.key(1), (*(() if axes == 1 else (2,)), rows // axes, 8))
        assert ("reduce_precision" in str(jax.make_jaxpr(mapped)(x))) is few
        expected = jnp.stack([linear(row) for row in jnp.reshape(x, (-1, 8))])
        np.testing.assert_allclose(jnp.reshape(mapped(x), (-1, 4)), expected, atol=1e-6)
    gradient = jax.vmap(jax.grad(lambda x: jnp.sum(jnp.square(linear(x)))))
    assert gradient(jnp.reshape(x, (-1, 8))).shape == (rows, 8)


def test_weights_may_be_mapped_too():
    """As those of an ensemble are."""
    weights = jax.random.normal(jax.random.key(0), (3, 4, 8)).astype(jnp.bfloat16)
    x = jax.random.normal(jax.random.key(1), (5, 8))
    got = jax.vmap(jax.vmap(project, (None, 0)), (0, None))(weights, x)
    expected = jnp.stack([jnp.stack([project(weight, row) for row in x]) for weight in weights])
    np.testing.assert_allclose(got, expected, atol=1e-6)
