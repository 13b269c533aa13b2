"""Matrices in 8 bits and in bfloat16: products as exact as those of float32, and models that stay what they were."""

import dataclasses
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BF16_BOUND, all_finite, build, jit, over, random_tokens, relative_error, trees_equal_bitwise
from registry import LANGUAGE_MODELS, MIXERS

import ssmkit
from ssmkit import Int8Matrix
from ssmkit.checkpoint import CheckpointError, check_writable, from_pretrained, save_pretrained
from ssmkit.layers import _quantize
from ssmkit.layers._matrix import look_up, project
from ssmkit.models import Mamba2, Mamba2Config
from ssmkit.text._tokenizer import Tokenizer


KINDS = ("int8", "bfloat16")
# What has two axes or more and is no matrix: it is multiplied entry by entry.
ENTRY_BY_ENTRY = {
    ".conv.weight": "taps of each channel",
    ".A_log": "a decay rate of each channel and state",
    ".D": "a skip of each head's channel",
    ".time_decay": "a decay rate of each key channel",
    ".bonus": "of each key channel",
    ".lower_bound": "of each key channel",
    ".lower_bounds": "of each layer's key channels",
    ".lerp.mu": "five shares of each feature",
    ".B_bias": "added to keys",
    ".C_bias": "added to queries",
    ".mimo_x": "scales values",
    ".mimo_z": "scales gates",
    ".mimo_o": "scales outputs",
}
FLAGSHIP = over(LANGUAGE_MODELS, "mamba2-groups2-biases-limits-D_has_hdim-tied")


# Products.


OUT, IN = 300, 256  # float32 products of so many terms are right to 3e-7
ON_CPU = jax.default_backend() == "cpu"  # elsewhere inputs meet a bfloat16 matrix rounded
BOUND = {"int8": 2e-6, "bfloat16": 5e-7 if ON_CPU else 2**-7}
GRADIENT_BOUND = BOUND | ({"bfloat16": 2e-6} if ON_CPU else {})


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


def inputs(*shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(1).normal(size=(*shape, IN)), jnp.float32)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (5, 20)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_as_exact_as_those_of_float32(kind, shape):
    matrix, x = narrow(kind), inputs(*shape)
    y = jit(project)(matrix, x)
    assert y.dtype == jnp.float32 and y.shape == (*shape, OUT)
    assert worst(y, matrix, x) <= BOUND[kind]


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
    assert worst(jit(project)(matrix, rounded), matrix, x) > 100 * BOUND[kind]


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
    assert relative_error(got.scale, expected) <= 2e-6
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


def test_other_platforms_widen_as_they_read():
    """No digits there, one product, and the state of the art of none: a matrix that is cast to what it meets."""
    for kind in KINDS:
        traced = jit(project).trace(narrow(kind), inputs())
        cpu, other = (str(traced.lower(lowering_platforms=(name,)).as_text()) for name in ("cpu", "cuda"))
        assert ("tensor<3x256x" in cpu, "tensor<3x256x" in other) == (True, False)


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
    """XLA's CPU backend once added up the three digits of a large matrix's products wrongly, for mapped rows only."""
    rng = np.random.default_rng(0)
    matrix = _quantize.NARROW[kind](rng.standard_normal((50288, 768), np.float32))
    x = jnp.asarray(rng.standard_normal((4, 768), np.float32))
    got = jax.jit(lambda matrix, x: jax.vmap(lambda x: project(matrix, x))(x))(matrix, x)
    one_by_one = jnp.stack([jax.jit(project)(matrix, row) for row in x])
    assert relative_error(got, one_by_one) <= 2e-6


# Rounding.


def test_int8_rounds_by_at_most_half_a_step():
    """Of its row; the largest entry of each row is kept."""
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


# Models.


@dataclasses.dataclass(frozen=True)
class Parts:
    """The leaves of a model, with matrices as they are stored."""

    matrices: list
    others: list

    @classmethod
    def of(cls, model) -> "Parts":
        is_layer = lambda node: isinstance(node, ssmkit.Linear | ssmkit.Embedding)
        layers = [node for node in jax.tree.leaves(model, is_leaf=is_layer) if is_layer(node)]
        rest = [leaf for leaf in jax.tree.leaves(model, is_leaf=is_layer) if not is_layer(leaf)]
        biases = [layer.bias for layer in layers if getattr(layer, "bias", None) is not None]
        return cls([layer.weight for layer in layers], rest + biases)


def nbytes(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", KINDS)
@over(LANGUAGE_MODELS, "language-model")
def test_only_matrices_change(case, kind):
    """Everything else is the same object: convolutions, norms, biases, skips and all that decays are made of."""
    model = build(case)
    narrowed = ssmkit.quantize(model, kind)
    assert type(narrowed) is type(model)
    before, after = Parts.of(model), Parts.of(narrowed)
    assert len(before.matrices) > 2 and len(before.others) > 2
    assert all(a is b for a, b in zip(before.others, after.others, strict=True))
    for a, b in zip(before.matrices, after.matrices, strict=True):
        assert trees_equal_bitwise(b, narrow(kind, a))
        assert isinstance(b, Int8Matrix) if kind == "int8" else b.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in after.others} == {jnp.dtype(jnp.float32)}
    cache = narrowed.init_cache()
    _, cache = eqx.filter_jit(lambda model, cache: model.step(jnp.asarray(1), cache))(narrowed, cache)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.float32)}


@over(MIXERS + LANGUAGE_MODELS)
def test_every_matrix_is_known_as_one(case):
    """Whatever else has two axes is on the list above, with a reason."""
    mask = ssmkit.matrix_mask(eqx.filter(build(case), eqx.is_inexact_array))
    leaves = jax.tree.leaves_with_path(eqx.filter(build(case), eqx.is_inexact_array))
    for (path, leaf), is_matrix in zip(leaves, jax.tree.leaves(mask), strict=True):
        name = jax.tree_util.keystr(path)
        known = any(name.endswith(end) for end in ENTRY_BY_ENTRY)
        assert is_matrix != (known or leaf.ndim < 2), name


def widened(module):
    """The same module in float32, and its matrices still those that are stored."""
    is_int8 = lambda node: isinstance(node, Int8Matrix)
    wide = lambda leaf: jnp.asarray(exact(leaf), jnp.float32) if is_int8(leaf) else leaf.astype(jnp.float32)
    return jax.tree.map(
        lambda leaf: wide(leaf) if eqx.is_array(leaf) or is_int8(leaf) else leaf, module, is_leaf=is_int8
    )


@pytest.mark.skipif(not ON_CPU, reason="elsewhere inputs are rounded to the dtype of the matrix")
@over(MIXERS, *(case.id for case in MIXERS if "bf16" not in case.id))
def test_a_narrow_mixer_is_as_exact_as_its_matrices(case):
    """No activation is rounded on the way: a bfloat16 one is right to 4e-3 only."""
    x = case.sample(np.random.default_rng(0), 1)[0]
    for kind in KINDS:
        narrowed = ssmkit.quantize(build(case), kind)
        runs = (jit(lambda x, m=m: m.step(x, m.init_cache()))(x) for m in (narrowed, widened(narrowed)))
        for got, expected in zip(*map(jax.tree.leaves, runs), strict=True):
            assert relative_error(got, expected) <= 1e-6, kind


def test_memory_is_a_quarter_and_a_half():
    model = Mamba2(Mamba2Config(vocab_size=500, hidden_size=128, num_hidden_layers=1), key=jax.random.key(0))
    before = nbytes(Parts.of(model).matrices)
    assert 2 * nbytes(Parts.of(ssmkit.quantize(model, "bfloat16")).matrices) == before
    after = nbytes(Parts.of(ssmkit.quantize(model, "int8")).matrices)
    rows = sum(matrix.shape[0] for matrix in Parts.of(model).matrices)
    assert after == before // 4 + 4 * rows <= 0.26 * before


@pytest.mark.parametrize("case, kind", [("mamba2-groups2-biases-limits-D_has_hdim-tied", "int8"), ("toy", "bfloat16")])
def test_every_law_holds(case, kind):
    """As closely as in float32: only the gradient of a bfloat16 matrix is itself bfloat16."""
    (case,) = (known for known in LANGUAGE_MODELS if known.id == case)
    model = ssmkit.quantize(build(case), kind)
    gradient = BF16_BOUND if kind == "bfloat16" else 1e-5
    bound = case.bound if kind == "int8" or ON_CPU else BF16_BOUND
    tokens = random_tokens(np.random.default_rng(0), 11)
    report = ssmkit.testing.check_model(model, tokens, tolerance=bound, gradient=gradient)
    assert len({finding.law for finding in report.findings}) >= 8


@FLAGSHIP
def test_generation(case):
    """A batch of unequal prompts gives what each gives alone."""
    model, prompts = ssmkit.quantize(build(case), "int8"), [[4], [5, 6, 7, 8, 9, 10]]
    together = ssmkit.generate(model, prompts, 8)
    for row, prompt in enumerate(prompts):
        alone = ssmkit.generate(model, [prompt], 8)
        assert together.tokens[row].tolist() == alone.tokens[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
@FLAGSHIP
def test_logits_are_those_of_the_widened_model(case, kind):
    model, tokens = ssmkit.quantize(build(case), kind), jnp.arange(6)
    logits = [eqx.filter_jit(lambda model: model(tokens))(m) for m in (model, widened(model))]
    assert relative_error(*logits) <= (4e-6 if kind == "int8" or ON_CPU else BF16_BOUND)


@FLAGSHIP
def test_training_what_is_not_quantised(case):
    """Adapters, norms, decay rates: every leaf of floating point has a finite gradient, and the integers none."""
    model, tokens = ssmkit.quantize(build(case), "int8"), jnp.arange(12)
    loss = lambda model: jnp.mean(ssmkit.cross_entropy(model(tokens[:-1]), tokens[1:]))
    gradient = eqx.filter_jit(eqx.filter_grad(loss))(model)
    assert all_finite(gradient)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(gradient)}
    assert dtypes == {jnp.dtype(jnp.float32)}
    floats = [leaf for leaf in jax.tree.leaves(model) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert len(jax.tree.leaves(gradient)) == len(floats)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_what_is_no_kind_and_no_model():
    for kind in ([], None, 8):
        with pytest.raises(ValueError, match=r"`kind` must be one of int8, bfloat16, got (\[\]|None|8)\."):
            ssmkit.quantize(ssmkit.Linear(2, 2, key=jax.random.key(0)), kind)
    for model in ("x", None, {}, Mamba2, np.ones((2, 2))):
        with pytest.raises(TypeError, match="`model` must be an `equinox.Module`, such as a model of ssmkit, got "):
            ssmkit.quantize(model, "int8")


@FLAGSHIP
def test_mistakes(case, tmp_path):
    model = build(case)
    with pytest.raises(ValueError, match=r"`kind` must be one of int8, bfloat16, got 'int4'\."):
        ssmkit.quantize(model, "int4")
    narrowed = ssmkit.quantize(model, "int8")
    for kind in KINDS:
        with pytest.raises(TypeError, match="`model` is quantised already"):
            ssmkit.quantize(narrowed, kind)
    with pytest.raises(CheckpointError, match="`model` is quantised to int8, which no format here can express"):
        save_pretrained(narrowed, tmp_path / "model")
    with pytest.raises(CheckpointError, match="`model` is quantised to int8"):
        check_writable(narrowed)
    assert not (tmp_path / "model").exists()


# Checkpoints.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format, stored", [("hf", jnp.float32), ("state-spaces", jnp.bfloat16)])
def test_a_checkpoint_is_quantised_as_it_is_read(tmp_path, format, stored, kind):
    config = Mamba2Config(vocab_size=19, hidden_size=8, num_hidden_layers=2, state_size=4, head_dim=4)
    save_pretrained(Mamba2(config, key=jax.random.key(0), dtype=stored), tmp_path, format=format)
    for dtype in (None, "float32"):
        got = from_pretrained(tmp_path, dtype, quantize=kind)
        assert trees_equal_bitwise(got, ssmkit.quantize(from_pretrained(tmp_path, dtype), kind))


def test_what_cannot_be_asked_of_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="`quantize` must be one of int8, bfloat16, got 'int4'"):
        from_pretrained(tmp_path, quantize="int4")


MEASURE = """
import sys, jax
from ssmkit.checkpoint import describe, from_pretrained
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":"))
from_pretrained(sys.argv[1], quantize="int8")
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
model = from_pretrained(sys.argv[2], quantize="int8")
kept = sum(x.nbytes for x in jax.tree.leaves(model))
largest = max(tensor.nbytes for tensor in describe(sys.argv[2]).tensors.values())
print((kilobytes("VmHWM") - before) * 1024, kept, largest)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read from Linux's /proc")
def test_peak_memory_is_what_is_kept_and_one_matrix(tmp_path):
    """What is kept, the pages of the file that the largest matrix is on, and a few rows of it widened.

    The runtime's own threads allocate at moments of their own, which only adds: the least of three processes counts.
    """
    small = Mamba2Config(vocab_size=11, hidden_size=8, num_hidden_layers=1, state_size=3, head_dim=4)
    large = Mamba2Config(vocab_size=16000, hidden_size=512, num_hidden_layers=5, tie_word_embeddings=True)
    for name, config in (("small", small), ("large", large)):
        save_pretrained(Mamba2(config, key=jax.random.key(0)), tmp_path / name)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    for _ in range(3):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak, kept, largest = map(int, done.stdout.split())
        rows = _quantize._ROWS_PER_BLOCK * large.hidden_size * 4
        if peak <= 1.1 * kept + largest + 6 * rows:
            return
    pytest.fail(f"three times a peak of {peak} bytes, where {kept} are kept and the largest matrix has {largest}")


# The embedded model.


SPEECH = """\
HAMLET:
To be, or not to be: that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them? To die: to sleep;
No more; and by a sleep to say we end
The heart-ache and the thousand natural shocks
That flesh is heir to, 'tis a consummation
Devoutly to be wish'd. To die, to sleep;
To sleep: perchance to dream: ay, there's the rub;
For in that sleep of death what dreams may come
When we have shuffled off this mortal coil,
Must give us pause: there's the respect
That makes calamity of so long life.
"""


def test_perplexity_of_the_embedded_model():
    """Within 0.5 % and 0.1 % of float32."""
    folder = ssmkit.default_model_path()
    tokens = Tokenizer.from_file(folder).encode(SPEECH)
    model = from_pretrained(folder, dtype="float32")
    expected = ssmkit.score(model, tokens).perplexity
    for kind, bound in (("int8", 5e-3), ("bfloat16", 1e-3)):
        perplexity = ssmkit.score(ssmkit.quantize(model, kind), tokens).perplexity
        assert abs(perplexity / expected - 1) <= bound
