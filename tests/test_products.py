"""Every product of arrays goes through `ssmkit.product`, whose operands' dtype says how precise it is."""

import ast
import textwrap

import jax
import jax.numpy as jnp
import pytest
from source_files import CORE, CORE_FILES, MODEL_FILES, named

import ssmkit


HOME = CORE / "_products.py"
MULTIPLIES = {
    *("einsum", "dot", "vdot", "inner", "matmul", "matvec", "vecmat", "vecdot", "tensordot", "linalg", "cov"),
    *("corrcoef", "convolve", "correlate", "fftconvolve", "convolve2d", "correlate2d", "dot_general", "batch_matmul"),
    *("ragged_dot", "ragged_dot_general", "scaled_dot", "conv_general_dilated", "conv_with_general_padding"),
    *("conv_transpose", "conv_general_dilated_local", "conv_general_dilated_patches", "dot_product_attention"),
    *("scaled_matmul", "scaled_dot_general"),
}


def own_products(source: str) -> list[str]:
    """The products that a file computes otherwise, with JAX, NumPy being exact, and with `@`, whoever computes it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Attribute) and node.attr in MULTIPLIES and not ast.unparse(node).startswith("np."):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("jax", "einops", "equinox"):
            found += [alias.name for alias in node.names if alias.name in MULTIPLIES]
    return found


@named([path for path in CORE_FILES + MODEL_FILES if path != HOME])
def test_only_one_file_multiplies(path):
    assert own_products(path.read_text()) == []


def test_other_products_would_be_noticed():
    source = """
    from jax.lax import dot_general
    y = jnp.einsum("ij,j->i", a, x) + a @ x
    y @= b
    z = jax.lax.conv_general_dilated(a, x, (1,), "SAME") + jnp.linalg.norm(x) + x.dot(y)
    host = np.dot(a, x) + ssmkit.product("ij,j->i", a, x) + convolved(x)
    """
    found = ["dot_general", "jnp.einsum", "a @ x", "y @= b", "jax.lax.conv_general_dilated", "jnp.linalg", "x.dot"]
    assert sorted(own_products(textwrap.dedent(source))) == sorted(found)
    assert "jnp.einsum" in own_products(HOME.read_text())


@pytest.mark.parametrize(
    ("operands", "sums", "precision"),
    [
        (jnp.float32, jnp.float32, "[HIGHEST, HIGHEST]"),
        (jnp.complex64, jnp.complex64, "[HIGHEST, HIGHEST]"),
        (jnp.bfloat16, jnp.float32, "[DEFAULT, DEFAULT]"),
        (jnp.float16, jnp.float32, "[DEFAULT, DEFAULT]"),
        (jnp.int8, jnp.int32, "[DEFAULT, DEFAULT]"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_the_dtype_of_the_operands_says_how_precise_a_product_is(operands, sums, precision):
    """Gradients too."""
    a, x = jnp.ones((2, 3), operands), jnp.ones((3,), operands)
    multiply = lambda a, x: ssmkit.product("ij,j->i", a, x)
    assert multiply(a, x).dtype == sums
    functions = [multiply]
    if jnp.issubdtype(operands, jnp.inexact):
        functions.append(lambda a, x: jax.vjp(multiply, a, x)[1](jnp.ones(2, sums)))
    for function in functions:
        lines = jax.jit(function).lower(a, x).as_text().splitlines()
        products = [line for line in lines if "dot_general" in line]
        assert products and all(f"precision = {precision}" in line for line in products)


def test_operands_have_one_dtype():
    a, x = jnp.ones((2, 3), jnp.bfloat16), jnp.ones(3, jnp.float32)
    with pytest.raises(ValueError) as caught:
        ssmkit.product("ij,j->i", a, x)
    assert str(caught.value) == (
        "`operands` must have one dtype, got bfloat16, float32. Cast them: the dtype says how precise the product is."
    )
