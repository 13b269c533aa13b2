"""Models whose heads and channels are spread over the axis `model` of a mesh."""

import collections
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ssmkit
from ssmkit import parallel
from ssmkit.layers._apart import apart, together
from ssmkit.models import (
    GLAMixer,
    HGRN2Mixer,
    LRUMixer,
    Mamba2,
    Mamba2Config,
    Mamba2Mixer,
    Mamba3Mixer,
    MambaMixer,
    MLSTMMixer,
    RetNetMixer,
    RGLRUMixer,
    RWKV6ChannelMixer,
    RWKV6Mixer,
    S5Mixer,
)


DEVICES, WIDTH, VOCAB, TIME = 4, 32, 64, 10

# Each family of kernels, complex numbers, RWKV-6, attention, and all else that has heads or channels.
MIXERS: dict[str, Callable[..., ssmkit.AbstractMixer]] = {
    "mamba2": lambda key: Mamba2Mixer(WIDTH, state_size=8, head_dim=8, key=key),
    "mamba2-groups-biases": lambda key: Mamba2Mixer(
        WIDTH, state_size=8, head_dim=4, n_groups=4, use_bias=True, use_conv_bias=False, key=key
    ),
    "mamba": lambda key: MambaMixer(WIDTH, state_size=8, key=key),
    "mamba3": lambda key: Mamba3Mixer(WIDTH, state_size=8, head_dim=8, key=key),
    "gla-convolution": lambda key: GLAMixer(WIDTH, num_heads=4, use_short_conv=True, key=key),
    "retnet": lambda key: RetNetMixer(WIDTH, num_heads=4, key=key),
    "hgrn2": lambda key: HGRN2Mixer(WIDTH, state_size=8, key=key),
    "mlstm": lambda key: MLSTMMixer(WIDTH, num_heads=4, key=key),
    "lru": lambda key: LRUMixer(WIDTH, state_size=16, key=key),
    "s5": lambda key: S5Mixer(WIDTH, state_size=16, key=key),
    "rg-lru": lambda key: RGLRUMixer(WIDTH, num_heads=4, key=key),
    "rwkv6": lambda key: RWKV6Mixer(WIDTH, num_heads=4, key=key),
    "rwkv6-channel": lambda key: RWKV6ChannelMixer(WIDTH, key=key),
    "attention": lambda key: ssmkit.AttentionMixer(WIDTH, num_heads=4, key=key),
    "attention-convolution": lambda key: ssmkit.AttentionMixer(WIDTH, num_heads=4, conv_kernel=3, key=key),
    "attention-one-group": lambda key: ssmkit.AttentionMixer(WIDTH, num_heads=4, num_kv_heads=1, key=key),
    "mlp": lambda key: ssmkit.GatedMLP(WIDTH, intermediate_size=64, key=key),
    "experts": lambda key: ssmkit.MixtureOfExperts(
        WIDTH, num_experts=6, num_experts_per_tok=2, intermediate_size=16, shared_intermediate_size=8, key=key
    ),
}
LEARNT = ["mamba2", "gla-convolution", "mamba", "lru", "rwkv6", "attention-one-group", "experts"]
OTHERS = [name for name in MIXERS if name not in LEARNT]
SMALL = Mamba2Config(
    vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, state_size=8, head_dim=8, tie_word_embeddings=True
)
COLLECTIVES = re.compile(
    r"= (?:\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def mesh_of(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((DEVICES,), ("model",), axis_types=(kind,), devices=jax.devices()[:DEVICES])


def model_of(names: list[str]) -> ssmkit.LanguageModel:
    keys = jax.random.split(jax.random.key(0), len(names) + 1)
    mixers = [MIXERS[name](key) for name, key in zip(names, keys, strict=False)]
    return ssmkit.LanguageModel(VOCAB, WIDTH, mixers, tie_word_embeddings=True, key=keys[-1])


def loss_and_state(model, tokens):
    """The loss of every token but the first, and the cache after all of them."""
    logits, cache = model.forward(tokens, model.reserve(model.init_cache(), TIME + 1))
    return jnp.mean(ssmkit.cross_entropy(logits[:-1], tokens[1:])), cache


def one_token(model, token, cache):
    return model.step(token, cache)


def collectives(compiled) -> dict[str, int]:
    return dict(collections.Counter(COLLECTIVES.findall(compiled.as_text())))


def relative(got, expected) -> float:
    """The largest difference, in units of the largest entry of each array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(np.max(np.abs(np.asarray(a) - b)) / max(np.max(np.abs(b)), 1e-6) for a, b in pairs if np.size(b))


gradient: Any = eqx.filter_jit(eqx.filter_value_and_grad(loss_and_state, has_aux=True))
step: Any = eqx.filter_jit(one_token)


def test_two_sums_per_mixer_and_nothing_else():
    """The embedding is one sum, and every mixer at most two. Results are those of one device."""
    alone, mesh, tokens = model_of(LEARNT), mesh_of(), np.arange(TIME, dtype=np.int32) * 7 % VOCAB
    model, given = ssmkit.shard(alone, mesh), jax.device_put(tokens, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        compiled = gradient.lower(model, given).compile()
        (loss, cache), gradients = compiled(model, given)
    assert set(collectives(compiled.compiled)) == {"all-reduce"}
    (want, cache_alone), gradients_alone = gradient(alone, tokens)
    assert relative(loss, want) <= 2e-6
    assert relative(together(gradients), gradients_alone) <= 1e-5  # sums over tokens and heads, in another order
    check_step(alone, model, cache_alone, cache)


def test_two_sums_per_step_of_all_other_mixers():
    alone = model_of(OTHERS)
    model = ssmkit.shard(alone, mesh_of())
    empty = lambda model: model.reserve(model.init_cache(), 1)
    check_step(alone, model, empty(alone), empty(model))


def check_step(alone, model, cache_alone, cache):
    token, mesh = jnp.int32(7), parallel.mesh_of(model)
    with jax.set_mesh(mesh):
        given = jax.device_put(token, NamedSharding(mesh, PartitionSpec()))
        one = step.lower(model, given, cache).compile()
        logits, after = one(model, given, cache)
    counts = collectives(one.compiled)
    assert set(counts) == {"all-reduce"} and counts["all-reduce"] <= 1 + 2 * len(model.blocks), counts
    assert relative(logits, step(alone, token, cache_alone)[0]) <= 1e-5
    states = [leaf for leaf in jax.tree.leaves(after) if leaf.ndim == 3 and leaf.shape[0] % DEVICES == 0]
    assert states and all(leaf.sharding.spec[0] == "model" for leaf in states)


def test_explicit_axes():
    names = ["mamba2", "gla-convolution", "attention"]
    alone, mesh, tokens = model_of(names), mesh_of(AxisType.Explicit), np.arange(TIME, dtype=np.int32) * 7 % VOCAB
    model, given = ssmkit.shard(alone, mesh), jax.device_put(tokens, NamedSharding(mesh, PartitionSpec()))
    loss = lambda model, tokens: loss_and_state(model, tokens)[0]
    run: Any = eqx.filter_jit(eqx.filter_value_and_grad(loss))
    compiled = run.lower(model, given).compile()
    assert set(collectives(compiled.compiled)) <= {"all-reduce", "all-gather"}  # logits are gathered
    got, gradients = compiled(model, given)
    (want, _), gradients_alone = gradient(alone, tokens)
    assert relative(got, want) <= 2e-6
    whole = together(jax.tree.map(np.asarray, gradients), np.concatenate)
    assert relative(whole, gradients_alone) <= 1e-5


def test_apart_and_together_again():
    names = 2 * ["mamba2-groups-biases", "mamba3", "gla-convolution", "attention-one-group"]
    for model in (model_of(names), ssmkit.quantize(model_of(names), "int8"), ssmkit.scan_layers(model_of(names))):
        separate = apart(model, DEVICES)
        assert jax.tree.structure(separate) != jax.tree.structure(model)
        assert jax.tree.structure(apart(separate, DEVICES)) == jax.tree.structure(separate)
        assert eqx.tree_equal(together(separate), model)


@pytest.mark.parametrize("options", [{}, {"quantize": "int8"}, {"quantize": "bfloat16", "scan_layers": True}])
def test_every_device_reads_its_part(tmp_path, options):
    model = Mamba2(SMALL, key=jax.random.key(0))
    ssmkit.save_pretrained(model, tmp_path)
    mesh = parallel.make_mesh(data=2, model=DEVICES)
    loaded = ssmkit.from_pretrained(tmp_path, mesh=mesh, **options)
    expected = ssmkit.shard(ssmkit.from_pretrained(tmp_path, **options), mesh)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    for (path, got), want in zip(jax.tree.leaves_with_path(loaded), jax.tree.leaves(expected), strict=True):
        assert got.sharding.is_equivalent_to(want.sharding, got.ndim), jax.tree_util.keystr(path)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    ssmkit.save_pretrained(ssmkit.shard(model, mesh), tmp_path / "again")
    assert eqx.tree_equal(ssmkit.from_pretrained(tmp_path / "again"), model)


def test_specs():
    mesh = parallel.make_mesh(data=2, model=DEVICES)
    model = ssmkit.fully_shard(Mamba2(SMALL, key=jax.random.key(0)), mesh)
    specs = {
        jax.tree_util.keystr(path).removeprefix(".blocks[0].mixer"): tuple(leaf.sharding.spec)
        for path, leaf in jax.tree.leaves_with_path(model)
        if "blocks[1]" not in jax.tree_util.keystr(path)
    }
    assert specs[".embedding.weight"] == ("model", "data")
    assert specs[".in_proj.layers[0].weight"] == ("model", "data")  # z
    assert specs[".in_proj.layers[2].layer.weight"] == (None, "data")  # B, which all heads share
    assert specs[".conv.layers[0].weight"] == specs[".recurrence.A_log"] == ("model",)
    assert specs[".conv.layers[1].layer.weight"] == specs[".norm.weight"][1:] == ()
    assert specs[".out_proj.weight"] == ("data", "model")
    assert not specs[".blocks[0].norm.weight"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parallel.make_mesh(data=16), "the mesh data=16 takes 16 devices, got 8"),
        (lambda: parallel.make_mesh(model=0), "the axis `model` must have at least 1 device, got 0"),
        (
            lambda: ssmkit.shard(None, jax.make_mesh((2,), ("rows",))),
            "must have axes of data, model, sequence, got rows",
        ),
        (lambda: ssmkit.shard(None, "data"), "`mesh` must be a `jax.sharding.Mesh`, got 'data'"),
        (lambda: ssmkit.Linear(2, 3, parts=[ssmkit.Part(2, 1)], key=jax.random.key(0)), "must make up 3 outputs"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
