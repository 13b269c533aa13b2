"""Every option of mamba_ssm's models, against its equations in float64."""

import functools
import itertools
import json
import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mamba_ssm_numpy as reference
import numpy as np
import pytest
from helpers import forward, trees_equal_bitwise

import ssmkit
from ssmkit.checkpoint import CheckpointError, architectures, describe, from_pretrained, open_tensors, save_pretrained
from ssmkit.checkpoint._torch_pickle import write_torch_pickle
from ssmkit.models import Mamba, Mamba2, Mamba2Config, MambaConfig


pytestmark = pytest.mark.once


BOUND = 2e-5  # as a share of the largest logit, as against HF
TOKENS = np.random.default_rng(1).integers(0, 29, 23)
BASE = {
    "d_model": 12,
    "n_layer": 2,
    "vocab_size": 29,
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}
SECOND = {"layer": "Mamba2", "d_state": 5, "headdim": 4}
PUBLISHED = {"causal": True, "d_conv": 4, "out_proj_bias": False, "qkv_proj_bias": False, "rotary_emb_dim": 2}
# What differs from the above, of the model and of its mixers.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mamba": ({}, {"d_state": 3}),
    "mamba, half an expand": ({}, {"d_state": 3, "expand": 1.5, "dt_rank": 2}),
    "mamba, a fraction of a channel": ({"d_model": 7}, {"d_state": 3, "expand": 1.5}),
    "mamba, MLP": ({"d_intermediate": 130, "n_layer": 1}, {"d_state": 3}),
    "mamba, MLP, layer norms": ({"d_intermediate": 1, "rms_norm": False, "tie_embeddings": False}, {"bias": True}),
    "mamba2": ({}, SECOND),
    "half an expand": ({}, SECOND | {"expand": 1.5, "headdim": 6}),
    "SSM on some channels": ({}, SECOND | {"d_ssm": 8}),
    "SSM on some channels, groups": ({}, SECOND | {"d_ssm": 16, "ngroups": 2, "bias": True, "D_has_hdim": True}),
    "SSM on some channels, no norm": ({}, SECOND | {"d_ssm": 12, "rmsnorm": False}),
    "SSM on all channels by name": ({}, SECOND | {"d_ssm": 24}),
    "no norm": ({}, SECOND | {"rmsnorm": False, "D_has_hdim": True}),
    "norm before gate": ({}, SECOND | {"norm_before_gate": True}),
    "norm before gate, groups": ({}, SECOND | {"norm_before_gate": True, "ngroups": 3, "dt_limit": [0.05, 0.3]}),
    "MLP": ({"d_intermediate": 20}, SECOND),
    "layer norms": ({"rms_norm": False}, SECOND),
    "attention": (
        {"attn_layer_idx": [1], "n_layer": 3, "attn_cfg": PUBLISHED | {"num_heads": 3, "head_dim": 6}},
        SECOND,
    ),
    "attention of few keys, MLP, layer norms": (
        {
            "attn_layer_idx": [0],
            "attn_cfg": {"causal": True, "num_heads": 4, "num_heads_kv": 2, "softmax_scale": 0.9},
            "d_intermediate": 20,
            "rms_norm": False,
            "tie_embeddings": False,
        },
        SECOND | {"D_has_hdim": True},
    ),
    "attention, other positions": (
        {
            "attn_layer_idx": [0, 1],
            "attn_cfg": {"causal": True, "num_heads": 2, "d_conv": 2, "rotary_emb_dim": 6, "rotary_emb_base": 50.0},
        },
        SECOND,
    ),
    "everything": (
        {"d_intermediate": 256, "rms_norm": False, "tie_embeddings": False, "residual_in_fp32": False},
        SECOND | {"expand": 2.5, "d_ssm": 20, "norm_before_gate": True, "headdim": 5, "ngroups": 2, "conv_bias": False},
    ),
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def configuration(name: str) -> dict[str, Any]:
    model, mixer = VARIANTS[name]
    return BASE | model | {"ssm_cfg": mixer}


@functools.cache
def parameters(name: str) -> reference.Parameters:
    return reference.random_parameters(configuration(name))


def write(folder: pathlib.Path, name: str) -> None:
    """A checkpoint as mamba_ssm's `save_pretrained` writes it."""
    (folder / "config.json").write_text(json.dumps(configuration(name)))
    write_torch_pickle(folder / "pytorch_model.bin", parameters(name))


def check(actual, expected):
    error = np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected))
    print(f"logits: {error:.1e}")
    assert np.shape(actual) == expected.shape and error <= BOUND


@every_variant
def test_logits(tmp_path, name):
    """Logits of many tokens at once; of some and then the others one by one; padded."""
    write(tmp_path, name)
    model = from_pretrained(tmp_path)
    assert model.config.vocab_size == 29
    expected = reference.logits(configuration(name), parameters(name), TOKENS)
    tokens = jnp.asarray(TOKENS)
    check(forward(model, tokens), expected)
    run = eqx.filter_jit(lambda m: m.prefill(tokens, m.reserve(m.init_cache(), 23), length=jnp.asarray(20)))
    logits, cache = run(model)
    check(logits, expected[19])
    step = eqx.filter_jit(lambda m, token, cache: m.step(token, cache))
    for i in range(20, len(TOKENS)):
        logits, cache = step(model, tokens[i], cache)
        check(logits, expected[i])


@every_variant
def test_every_parameter_matters(name):
    """Equal logits say nothing about a parameter without which the reference's are the same."""
    config, tensors, tokens = configuration(name), parameters(name), TOKENS[:6]
    expected = reference.logits(config, tensors, tokens)
    for key, value in tensors.items():
        if key != "lm_head.weight" or not config["tie_embeddings"]:
            changed = reference.logits(config, tensors | {key: value[::-1]}, tokens)
            assert np.max(np.abs(changed - expected)) > 20 * BOUND * np.max(np.abs(expected)), key


@every_variant
def test_written_as_they_were_read(tmp_path, name):
    write(tmp_path, name)
    model = from_pretrained(tmp_path)
    save_pretrained(model, tmp_path / "again", format="state-spaces")
    tensors = open_tensors(tmp_path / "again" / "pytorch_model.bin")
    assert {key: tensor.shape for key, tensor in tensors.items()} == reference.shapes(configuration(name))
    for key, value in parameters(name).items():
        assert tensors[key].read().tobytes() == value.tobytes()
    assert trees_equal_bitwise(from_pretrained(tmp_path / "again"), model)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written.get("attn_cfg", {}) == configuration(name).get("attn_cfg", {})
    for key in ("d_intermediate", "rms_norm"):
        assert written.get(key, 0) == configuration(name).get(key, 0)
    for key in ("rmsnorm", "norm_before_gate", "expand"):
        assert written["ssm_cfg"].get(key) == VARIANTS[name][1].get(key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"causal": False}, "`attn_cfg.causal` must be True .*, got False"),
        ({"rotary_emb_interleaved": True}, "`attn_cfg.rotary_emb_interleaved` must be False .*, got True"),
        ({"mlp_dim": 8}, "`attn_cfg.mlp_dim` must be 0 .*, got 8"),
        ({"rotary_emb_dim": 8}, "`rotary_dim` must be even and at most `attention_head_dim` = 6, got 8"),
        ({"num_heads": None}, "`attn_cfg.num_heads` must be"),
    ],
)
def test_attention_that_is_refused(tmp_path, changes, message):
    write(tmp_path, "attention")
    content = configuration("attention")
    (tmp_path / "config.json").write_text(json.dumps(content | {"attn_cfg": content["attn_cfg"] | changes}))
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(tmp_path)


def test_one_architecture_claims_each_file():
    """With layers of attention, and without any, whatever the settings of such layers are."""
    content = configuration("attention")
    layers = {"Mamba2": "mamba2", "Mamba1": "mamba"}
    for attention, layer in itertools.product(([1], [], None), layers):
        file = content | {"attn_layer_idx": attention, "ssm_cfg": {"layer": layer}}
        claimed = [known.name for known in architectures() if any(d.matches(file) for d in known.dialects)]
        assert claimed == ["mamba2_attention" if attention else layers[layer]]


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("mamba, MLP", "d_intermediate"),
        ("mamba, MLP, layer norms", "rms_norm"),
        ("SSM on some channels", "d_ssm"),
        ("no norm", "rmsnorm"),
        ("norm before gate", "norm_before_gate"),
        ("MLP", "d_intermediate"),
        ("layer norms", "rms_norm"),
    ],
)
def test_hf_cannot_express_them(tmp_path, name, field):
    write(tmp_path, name)
    model = from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"The hf format cannot express this model.\n(.*\n)*.*`{field}`: got"):
        save_pretrained(model, tmp_path / "hf")
    with pytest.raises(CheckpointError, match=f"`{field}`: got"):
        ssmkit.checkpoint.check_writable(model)


@pytest.mark.parametrize("name", ["mamba, half an expand", "mamba, a fraction of a channel", "half an expand"])
def test_hf_can_express_any_expand(tmp_path, name):
    write(tmp_path, name)
    model = from_pretrained(tmp_path)
    save_pretrained(model, tmp_path / "hf")
    assert trees_equal_bitwise(from_pretrained(tmp_path / "hf"), model)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["expand"] == 1.5


SMALL: dict[str, Any] = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 3}


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (Mamba2Config, {"head_dim": 4, "d_ssm": 10}, r"`num_heads` \* `head_dim` must be `d_ssm` = 10"),
        (Mamba2Config, {"head_dim": 4, "d_ssm": 20}, r"`d_ssm` must be in \[1, .* = 16\], got 20"),
        (Mamba2Config, {"head_dim": 4, "d_ssm": 0}, "`d_ssm` must be an integer, at least 1, got 0"),
        (Mamba2Config, {"head_dim": 4, "num_heads": 3}, "`expand` . `hidden_size` = 16, got 3"),
        (Mamba2Config, {"head_dim": 4, "expand": 0.01}, r"`d_ssm` must be in \[1, .* = 0\]"),
        (MambaConfig, {"expand": 0.01}, "`expand` . `hidden_size` must be at least 1, got 0.01 . 8"),
        (MambaConfig, {"expand": -1.5}, "`expand` must be a number above 0, got -1.5"),
        (MambaConfig, {"expand": float("inf")}, "`expand` must be a number above 0, got inf"),
        (MambaConfig, {"d_intermediate": -1}, "`d_intermediate` must be an integer"),
    ],
)
def test_sizes_that_do_not_fit(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**SMALL | changes)


@pytest.mark.parametrize("value", [0, -2, "1.5", True, None, [2], 1e400])
@pytest.mark.parametrize("format", ["hf", "state-spaces"])
def test_expand_is_a_number(tmp_path, format, value):
    save_pretrained(Mamba(MambaConfig(**SMALL), key=jax.random.key(0)), tmp_path, format=format)
    content = json.loads((tmp_path / "config.json").read_text())
    content.get("ssm_cfg", content)["expand"] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="expand` must be a number above 0, got"):
        describe(tmp_path)


def test_hf_heads_must_fill_the_channels(tmp_path):
    """As in HF, whose class refuses such a configuration."""
    save_pretrained(Mamba2(Mamba2Config(**SMALL, head_dim=4), key=jax.random.key(0)), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {"num_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"`num_heads` \* `head_dim` must be `expand` \* `hidden_size` = 16"):
        describe(tmp_path)


def test_the_initialisation_scales_both_branches():
    """What mamba_ssm divides by the square root of the number of layers: what each branch ends in."""
    config = Mamba2Config(**SMALL | {"hidden_size": 64, "num_hidden_layers": 16}, d_intermediate=128)
    first, second, *_ = Mamba2(config, key=jax.random.key(0)).blocks
    assert float(jnp.max(jnp.abs(second.mixer.fc2.weight))) == pytest.approx(128**-0.5 / 4, rel=0.01)
    assert float(jnp.max(jnp.abs(first.mixer.out_proj.weight))) == pytest.approx(128**-0.5 / 4, rel=0.01)
    assert float(jnp.max(jnp.abs(second.mixer.fc1.weight))) == pytest.approx(64**-0.5, rel=0.01)
