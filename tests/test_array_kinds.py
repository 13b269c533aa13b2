"""Kinds of arrays, which weight decay, quantisation and partition specs are functions of."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import VOCAB, build, over
from jaxtyping import Array, Float
from registry import LANGUAGE_MODELS, MIXERS

import ssmkit
from ssmkit import ArrayKind
from ssmkit.models import GLAMixer, Mamba2, Mamba2Config, RGLRUMixer


KEY = jax.random.key(0)


def named(tree) -> dict[str, ArrayKind]:
    leaves = jax.tree.leaves_with_path(ssmkit.array_kinds(tree))
    return {jax.tree_util.keystr(path).lstrip("."): kind for path, kind in leaves}


def of_kind(tree, kind: ArrayKind) -> set[str]:
    return {name for name, other in named(tree).items() if other is kind}


def test_kinds_of_a_whole_model():
    config = Mamba2Config(vocab_size=12, hidden_size=8, num_hidden_layers=1, head_dim=4, state_size=4, use_bias=True)
    model = Mamba2(config, key=KEY)
    assert of_kind(model, ArrayKind.EMBEDDING) == {"embedding.weight"}
    assert of_kind(model, ArrayKind.HEAD) == {"head.weight"}
    assert of_kind(model.blocks[0], ArrayKind.PROJECTION_IN) == {"mixer.in_proj.weight"}
    assert of_kind(model.blocks[0], ArrayKind.PROJECTION_OUT) == {"mixer.out_proj.weight"}
    assert of_kind(model.blocks[0], ArrayKind.VECTOR) == {"norm.weight", "mixer.out_proj.bias"}
    assert of_kind(model.blocks[0].mixer, ArrayKind.PER_HEAD) == {
        "in_proj.bias",
        "conv.weight",
        "conv.bias",
        "recurrence.A_log",
        "recurrence.dt_bias",
        "D",
        "norm.weight",
    }


@pytest.mark.parametrize(
    ("mixer", "sums", "per_head"),
    [
        (GLAMixer(8, num_heads=2, key=KEY), {"o_proj.weight"}, {"gk_up.bias"}),
        (
            RGLRUMixer(8, num_heads=2, key=KEY),
            {"linear_out.weight"},
            {"linear_x.bias", "linear_y.bias", "conv.weight", "conv.bias", "recurrence.Lambda"}
            | {"input_gate.bias", "recurrence_gate.bias"},
        ),
        (ssmkit.GatedMLP(8, intermediate_size=5, use_bias=True, key=KEY), {"down.weight"}, {"gate.bias", "up.bias"}),
    ],
)
def test_kinds_of_mixers(mixer, sums, per_head):
    assert of_kind(mixer, ArrayKind.PROJECTION_OUT) == sums
    assert of_kind(mixer, ArrayKind.PER_HEAD) == per_head


@over(LANGUAGE_MODELS)
def test_every_model_has_one_embedding_and_at_most_one_head(case):
    model = eqx.filter(build(case), eqx.is_array)
    kinds = ssmkit.array_kinds(model)
    assert jax.tree.structure(kinds) == jax.tree.structure(model)
    counts = [list(jax.tree.leaves(kinds)).count(kind) for kind in (ArrayKind.EMBEDDING, ArrayKind.HEAD)]
    assert counts == [1, 0 if model.head is None else 1]


@over(MIXERS)
def test_every_mixer_projects_in_and_out(case):
    """What sums over channels leads back to the residual stream, whose width is that of the samples."""
    mixer = build(case)
    width = case.sample(np.random.default_rng(0), 1).shape[-1]
    kinds, leaves = jax.tree.leaves(ssmkit.array_kinds(mixer)), jax.tree.leaves(mixer)
    rows = {leaf.shape[-2] for kind, leaf in zip(kinds, leaves, strict=True) if kind is ArrayKind.PROJECTION_OUT}
    assert width in rows and ArrayKind.PROJECTION_IN in kinds
    assert all(leaf.ndim > 0 for kind, leaf in zip(kinds, leaves, strict=True) if kind is ArrayKind.PER_HEAD)


def test_masks_are_functions_of_kinds():
    mixer = GLAMixer(8, num_heads=2, key=KEY)
    matrices = {name for name, kind in named(mixer).items() if kind.is_matrix}
    masked = {jax.tree_util.keystr(p).lstrip(".") for p, m in jax.tree.leaves_with_path(ssmkit.matrix_mask(mixer)) if m}
    assert matrices == masked == {name for name in named(mixer) if name.endswith("weight") and "norm" not in name}
    narrow = ssmkit.quantize(mixer, "int8")
    of_matrix = {name.removesuffix(".values").removesuffix(".scale"): kind for name, kind in named(narrow).items()}
    assert of_matrix == named(mixer)  # both arrays of a matrix of 8 bits have the matrix's kind


def test_what_users_write():
    """Annotations tell kinds in classes that the package does not know; without any, an array is a vector."""

    class Mine(eqx.Module):
        up: ssmkit.Linear
        down: Annotated[ssmkit.Linear, ArrayKind.PROJECTION_OUT]
        both: Annotated[tuple[ssmkit.Linear, ...], ArrayKind.PROJECTION_OUT]
        per_head: Float[Array, "heads key"] | None
        per_feature: Float[Array, "width heads"]
        said: Annotated[Array, ArrayKind.PER_HEAD] | None
        bare: Array

    linear, array = ssmkit.Linear(2, 2, use_bias=True, key=KEY), jnp.zeros((2, 2))
    kinds = named(Mine(linear, linear, (linear,), array, array, array, array))
    expected = {
        "up.weight": ArrayKind.PROJECTION_IN,
        "up.bias": ArrayKind.PER_HEAD,
        "down.weight": ArrayKind.PROJECTION_OUT,
        "down.bias": ArrayKind.VECTOR,
        "both[0].weight": ArrayKind.PROJECTION_OUT,
        "both[0].bias": ArrayKind.VECTOR,
        "per_head": ArrayKind.PER_HEAD,
        "per_feature": ArrayKind.VECTOR,
        "said": ArrayKind.PER_HEAD,
        "bare": ArrayKind.VECTOR,
    }
    assert kinds == expected


def test_specs_are_functions_of_kinds():
    """A tensor-parallel placement in four lines: what the kinds are for, besides masks."""
    model = ssmkit.LanguageModel(VOCAB, 8, [GLAMixer(8, num_heads=2, key=KEY)], key=KEY)
    split = {ArrayKind.PROJECTION_IN: 0, ArrayKind.PER_HEAD: 0, ArrayKind.PROJECTION_OUT: 1}
    spec = lambda kind, leaf: tuple("model" if axis == split.get(kind) else None for axis in range(leaf.ndim))
    specs = jax.tree.map(spec, ssmkit.array_kinds(model), model)
    assert specs.blocks[0].mixer.q_proj.weight == ("model", None)
    assert specs.blocks[0].mixer.o_proj.weight == (None, "model")
    assert specs.embedding.weight == (None, None)
