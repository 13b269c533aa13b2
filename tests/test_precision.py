"""Products as a TPU and a GPU compute them by default: from rounded float32 operands. No result may depend on it."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import build, methods, over, random_coefficients, relative_error
from kernel_runs import cotangents_of
from registry import EVERYTHING

import ssmkit
from ssmkit import kernels


# What programs state.

PRODUCT = re.compile(r"stablehlo\.(?:dot_general|dot|convolution)\b.* : \((.*)\) -> ")
WIDE = re.compile(r"[x<](?:f32|f64|complex<f32>|complex<f64>)>")


# What is precise enough. In a recurrence, a TPU may take two bfloat16 numbers of each operand; a GPU's HIGH is TF32.
PRECISE = {"tpu": ("[HIGHEST, HIGHEST]", "[HIGH, HIGH]"), "cuda": ("[HIGHEST, HIGHEST]",)}


def products(text: str, platform: str = "tpu") -> list[tuple[str, bool, bool]]:
    """The products of a StableHLO module: a line each, whether operands are wide, and whether all are precise."""
    found = [(match[0], match[1]) for match in PRODUCT.finditer(text)]
    assert len(found) == len(re.findall(r"stablehlo\.(?:dot_general|dot|convolution)\b", text))
    precise = lambda line: any(precision in line for precision in PRECISE[platform])
    return [(line, WIDE.search(operands) is not None, precise(line)) for line, operands in found]


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
def test_every_wide_product_is_precise(case):
    """Gradients of products with bfloat16 matrices are as quick as these products: they are left out."""
    arguments, functions = programs(case)
    if any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(arguments[0])):
        del functions["gradient"]
    for name, function in functions.items():
        with kernels.target("tpu"):
            text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda", "tpu")).as_text()
        assert [line for line, wide, precise in products(text) if wide and not precise] == [], name


def operands(form):
    sizes = dict(time=96, heads=4, groups=2, key=8, value=6, cumulative=-5.0, chunk=96)
    return random_coefficients(0, **sizes | FORMS[form])


FORMS = {"K1": {}, "K2": dict(decays=8), "K3": dict(decays=8, value=1), "bonus": dict(decays=8, bonus=True)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.complex64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("platform", PRECISE)
@pytest.mark.parametrize("form", FORMS)
def test_every_platform_has_a_precision_for_recurrences(form, platform, dtype):
    """It is that of float32 operands; others count in full. A step counts all operands in full."""
    arguments = jax.tree.map(lambda leaf: leaf.astype(dtype), operands(form))
    with kernels.target(platform):
        lowered = jax.jit(kernels.chunk_scan).trace(*arguments).lower(lowering_platforms=(platform,))
    (*_, quickest) = PRECISE[platform] if dtype == jnp.float32 else PRECISE["cuda"]
    assert all(quickest in line for line, _, _ in products(lowered.as_text()))
    assert form == "K3" or products(lowered.as_text())


def test_a_product_without_a_precision_would_be_noticed():
    x = jnp.ones((3, 3))
    lower = lambda function: jax.jit(function).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    ((_, wide, precise),) = products(lower(lambda x: x @ x))
    assert (wide, precise) == (True, False)
    ((_, wide, precise),) = products(lower(lambda x: ssmkit.product("ij,jk->ik", x, x)))
    assert (wide, precise) == (True, True)
    ((_, wide, _),) = products(lower(lambda x: x.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)))
    assert not wide


# What comes out.

BITS = {"tpu": 7, "cuda": 10}  # of the mantissa: bfloat16, and TF32
BOUND = 2e-5


def rounded(x, bits):
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits) if x.dtype == jnp.float32 else x


def in_two(x, bits):
    """The two narrow numbers that stand for an operand at the precision `HIGH`."""
    first = rounded(x, bits)
    return first, rounded(x - first, bits)


@pytest.fixture(params=BITS)
def narrow(request, monkeypatch):
    """The platform's products: operands without a precision are rounded, and those of `HIGH` are sums of two numbers.

    With `True`, all are rounded.
    """
    real, bits = jnp.einsum, BITS[request.param]
    full = functools.partial(real, precision=jax.lax.Precision.HIGHEST)

    def patch(everywhere=False):
        def einsum(equation, *operands, precision=None, **options):
            if precision is None or everywhere:
                return full(equation, *[rounded(x, bits) for x in operands], **options)
            if precision == jax.lax.Precision.HIGH:
                (a, b), (c, d) = (in_two(x, bits) for x in operands)
                return sum(full(equation, *pair, **options) for pair in ((a, d), (b, c), (a, c)))
            return full(equation, *operands, **options)

        monkeypatch.setattr(jnp, "einsum", einsum)  # the only product of the package: test_products.py
        jax.clear_caches()

    with kernels.target(request.param):
        yield patch
    monkeypatch.undo()
    jax.clear_caches()


def chunks_differ(form) -> float:
    """The largest error between results in chunks of 32 and of 5 tokens, gradients included."""
    coefficients, state = operands(form)

    def run(size):
        with kernels.tuned(chunk_size=size):
            results, pull = jax.vjp(kernels.chunk_scan, coefficients, state)
        return results, pull(cotangents_of(1, *results))  # given, so that errors of outputs are not in them

    pairs = zip(*(jax.tree.leaves(jax.jit(run, static_argnums=0)(size)) for size in (32, 5)), strict=True)
    return max(relative_error(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", ["K1", "K2", "K3"])
def test_results_do_not_depend_on_chunks(narrow, form):
    narrow()
    assert chunks_differ(form) <= BOUND
    if form != "K3":  # it has no products
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
