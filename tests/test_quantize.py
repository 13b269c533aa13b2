"""Models with narrow matrices stay what they were: their laws, memory, training and generation."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import BF16_BOUND, all_finite, build, jit, over, random_tokens, relative_error, trees_equal_bitwise
from narrow_matrices import FLAGSHIP, KINDS, ON_CPU, exact, narrow
from registry import LANGUAGE_MODELS, MIXERS

import ssmkit
from ssmkit import Int8Matrix
from ssmkit.checkpoint import CheckpointError, check_writable, save_pretrained
from ssmkit.models import Mamba2, Mamba2Config


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
    ".router.weight": "chooses experts, for which narrow numbers are too coarse",
}


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
        layers = name.count(".blocks[") > 1  # an axis of stacked blocks
        assert is_matrix != (known or leaf.ndim - layers < 2), name


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
    """No activation is rounded to 8 bits on the way, with which outputs would be right to 4e-3 only."""
    x = case.sample(np.random.default_rng(0), 1)[0]
    for kind in KINDS:
        narrowed = ssmkit.quantize(build(case), kind)
        runs = (jit(lambda x, m=m: m.step(x, m.reserve(m.init_cache(), 1)))(x) for m in (narrowed, widened(narrowed)))
        for got, expected in zip(*map(jax.tree.leaves, runs), strict=True):
            assert relative_error(got, expected) <= {"int8": 3e-4, "bfloat16": 1e-6}[kind], kind


def test_memory_is_a_quarter_and_a_half():
    model = Mamba2(Mamba2Config(vocab_size=500, hidden_size=128, num_hidden_layers=1), key=jax.random.key(0))
    before = nbytes(Parts.of(model).matrices)
    assert 2 * nbytes(Parts.of(ssmkit.quantize(model, "bfloat16")).matrices) == before
    after = nbytes(Parts.of(ssmkit.quantize(model, "int8")).matrices)
    rows = sum(matrix.shape[0] for matrix in Parts.of(model).matrices)
    assert after == before // 4 + 4 * rows <= 0.26 * before


@pytest.mark.parametrize("case, kind", [("mamba2-groups2-biases-limits-D_has_hdim-tied", "int8"), ("toy", "bfloat16")])
def test_every_law_holds(case, kind):
    """As closely as in float32, or to 15 bits; only the gradient of a bfloat16 matrix is itself bfloat16."""
    (case,) = (known for known in LANGUAGE_MODELS if known.id == case)
    model = ssmkit.quantize(build(case), kind)
    gradient = BF16_BOUND if kind == "bfloat16" else 1e-5
    bound = (3e-4 if kind == "int8" else case.bound) if ON_CPU else BF16_BOUND
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
    assert relative_error(*logits) <= ({"int8": 3e-4, "bfloat16": 4e-6}[kind] if ON_CPU else BF16_BOUND)


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
