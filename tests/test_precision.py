"""Products as a TPU and a GPU compute them by default: from rounded float32 operands. No result may depend on it."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import build, methods, over, random_coefficients, relative_error
from registry import EVERYTHING

import ssmkit
from ssmkit import kernels


# What programs state.

PRODUCT = re.compile(r"stablehlo\.(?:dot_general|dot|convolution)\b.* : \((.*)\) -> ")
WIDE = re.compile(r"[x<](?:f32|f64|complex<f32>|complex<f64>)>")


def products(text: str) -> list[tuple[str, bool, bool]]:
    """The products of a StableHLO module: a line each, whether operands are wide, and whether all count in full."""
    found = [(match[0], match[1]) for match in PRODUCT.finditer(text)]
    assert len(found) == len(re.findall(r"stablehlo\.(?:dot_general|dot|convolution)\b", text))
    return [(line, WIDE.search(operands) is not None, "[HIGHEST, HIGHEST]" in line) for line, operands in found]


def programs(case):
    """The arguments and the functions of a case: many tokens and their gradients, and a step."""
    module = build(case)
    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    inputs = case.sample(np.random.default_rng(0), 40)

    def begin(arrays):
        init, many, step = methods(eqx.combine(arrays, static))
        cache, model = init(), eqx.combine(arrays, static)
        return (model.reserve(cache, 40) if hasattr(model, "reserve") else cache), many, step

    def many(arrays, inputs):
        cache, run, _ = begin(arrays)
        return run(inputs, cache)

    def step(arrays, inputs):
        cache, _, run = begin(arrays)
        return run(jax.tree.map(lambda leaf: leaf[0], inputs), cache)

    def loss(arrays, inputs):
        wide = [leaf for leaf in jax.tree.leaves(many(arrays, inputs)) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return sum(jnp.sum(jnp.real(leaf)) for leaf in wide)

    return (arrays, inputs), {"many": many, "step": step, "gradient": jax.grad(loss, allow_int=True)}


@over(EVERYTHING)
def test_every_wide_product_counts_its_operands_in_full(case):
    """Gradients of products with bfloat16 matrices are as quick as these products: they are left out."""
    arguments, functions = programs(case)
    if any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(arguments[0])):
        del functions["gradient"]
    for name, function in functions.items():
        with kernels.target("tpu"):  # kernels have one form for all accelerators
            text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda", "tpu")).as_text()
        assert [line for line, wide, full in products(text) if wide and not full] == [], name


def test_a_product_without_a_precision_would_be_noticed():
    x = jnp.ones((3, 3))
    lower = lambda function: jax.jit(function).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    ((_, wide, full),) = products(lower(lambda x: x @ x))
    assert (wide, full) == (True, False)
    ((_, wide, full),) = products(lower(lambda x: ssmkit.product("ij,jk->ik", x, x)))
    assert (wide, full) == (True, True)
    ((_, wide, _),) = products(lower(lambda x: x.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)))
    assert not wide


# What comes out.

BITS = {"tpu": 7, "cuda": 10}  # of the mantissa: bfloat16, and TF32
BOUND = 2e-5


@pytest.fixture(params=BITS)
def narrow(request, monkeypatch):
    """The platform's default: operands of products without a precision are rounded. With `True`, those of all."""
    real, bits = jnp.einsum, BITS[request.param]

    def patch(everywhere=False):
        def einsum(equation, *operands, precision=None, **options):
            if precision is None or everywhere:
                round_ = lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits)
                operands = [round_(x) if x.dtype == jnp.float32 else x for x in operands]
            return real(equation, *operands, precision=jax.lax.Precision.HIGHEST, **options)

        monkeypatch.setattr(jnp, "einsum", einsum)  # the only product of the package: test_products.py
        jax.clear_caches()

    with kernels.target(request.param):
        yield patch
    monkeypatch.undo()
    jax.clear_caches()


def chunks_differ(form) -> float:
    """The largest error between results in chunks of 32 and of 5 tokens, gradients included."""
    sizes = dict(time=96, heads=4, groups=2, key=8, value=6, cumulative=-5.0, chunk=96)
    coefficients, state = random_coefficients(0, **sizes | form)

    def run(size):
        def total(coefficients, state):
            with kernels.tuned(chunk_size=size):
                outputs, final = kernels.chunk_scan(coefficients, state)
            return jnp.sum(jnp.sin(outputs)) + jnp.sum(final**2), (outputs, final)

        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(coefficients, state)

    pairs = zip(jax.tree.leaves(run(32)), jax.tree.leaves(run(5)), strict=True)
    return max(relative_error(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", [{}, dict(decays=8), dict(decays=8, value=1)], ids=["K1", "K2", "K3"])
def test_results_do_not_depend_on_chunks(narrow, form):
    narrow()
    assert chunks_differ(form) <= BOUND
    if form.get("value") != 1:  # K3 has no products
        narrow(everywhere=True)
        assert chunks_differ(form) > 10 * BOUND


def step_differs() -> float:
    """The error of logits and states of the embedded model between a prompt and single tokens."""
    model = ssmkit.from_pretrained(ssmkit.default_model_path(), "float32")
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, model.vocab_size, 64))

    def steps(cache, token):
        logits, cache = model.step(token, cache)
        return cache, logits

    cache, logits = jax.jit(lambda tokens: jax.lax.scan(steps, model.init_cache(), tokens))(tokens)
    expected = jax.jit(lambda tokens: model.prefill(tokens, model.init_cache()))(tokens)
    pairs = zip(jax.tree.leaves((logits[-1], cache)), jax.tree.leaves(expected), strict=True)
    return max(relative_error(a, b) for a, b in pairs)


def test_a_prompt_equals_its_tokens(narrow):
    narrow()
    assert step_differs() <= BOUND
    narrow(everywhere=True)
    assert step_differs() > 5 * BOUND
