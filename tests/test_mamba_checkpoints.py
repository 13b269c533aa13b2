"""Mamba's published layouts: exact round trips, and what they cannot say."""

import dataclasses
import json
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import trees_equal_bitwise

import ssmkit
from ssmkit.checkpoint import CheckpointError, architectures, describe, open_tensors
from ssmkit.models import Mamba, Mamba2, Mamba2Config, MambaConfig


# Checkpoints.

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "padded": {"pad_vocab_size_multiple": 8},
    "biases": {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3},
    "sizes": {"expand": 3, "time_step_rank": 3, "time_step_min": 0.01, "residual_in_fp32": False},
    "falcon": {"mixer_rms_eps": 1e-5, "tie_word_embeddings": False},
    "channels": {"intermediate_size": 9},
    "epsilon": {"layer_norm_epsilon": 1e-6},
    "chunks": {"chunk_size": 4},
    "tokens": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None},
}
INEXPRESSIBLE = {"falcon": "mixer_rms_eps", "channels": "intermediate_size", "epsilon": "layer_norm_epsilon"}
SMALL = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 3}


def random_model(name: str = "plain", dtype=jnp.float32) -> Mamba:
    """No two arrays alike, and none constant."""
    skeleton = eqx.filter_eval_shape(Mamba, MambaConfig(**SMALL | CONFIGS[name]), key=jax.random.key(0), dtype=dtype)
    rng = np.random.default_rng(0)
    fill = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
    return jax.tree.map(lambda leaf: fill(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, skeleton)


def dialect_of(format: str):
    architecture = next(known for known in architectures() if known.name == "mamba")
    return next(dialect for dialect in architecture.dialects if dialect.name == format)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("format", ["hf", "state-spaces"])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trips_are_bit_for_bit(tmp_path, name, format, dtype):
    model = random_model(name, dtype)
    if format == "state-spaces" and name in INEXPRESSIBLE:
        with pytest.raises(CheckpointError, match=f"cannot express this model.\n  - `{INEXPRESSIBLE[name]}`: got"):
            ssmkit.save_pretrained(model, tmp_path, format=format)
        return
    ssmkit.save_pretrained(model, tmp_path, format=format)
    checkpoint = describe(tmp_path)
    assert (checkpoint.architecture.name, checkpoint.dialect.name) == ("mamba", format)
    loaded = ssmkit.from_pretrained(tmp_path)
    if format == "state-spaces" and name in ("tokens", "chunks"):  # these are lost, and nothing else
        plain = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "chunk_size": None}
        assert loaded.config == dataclasses.replace(model.config, **plain)
        assert trees_equal_bitwise(jax.tree.leaves(loaded), jax.tree.leaves(model))
    else:
        assert trees_equal_bitwise(loaded, model)
    content = json.loads((tmp_path / "config.json").read_text())
    assert ("mixer_rms_eps" in content) == (name == "falcon")
    assert content.get("model_type") == (None if format != "hf" else "falcon_mamba" if name == "falcon" else "mamba")


def test_published_state_spaces_configuration(tmp_path):
    """As the file of `mamba-130m`, but for the key `tie_embeddings`, which is younger."""
    content = {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True}
    content |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="holds no weights: expected `pytorch_model.bin`"):
        describe(tmp_path)
    dialect = dialect_of("state-spaces")
    config = dialect.read_config(content)
    assert (config.padded_vocab_size, config.intermediate_size, config.time_step_rank, config.state_size) == (
        50280,
        1536,
        48,
        16,
    )
    assert config.tie_word_embeddings and config.mixer_rms_eps is None
    assert dialect.write_config is not None
    written = dialect.write_config(config, "float16")
    assert written.pop("tie_embeddings") is True
    assert {name: value for name, value in written.items() if name in content} == content
    assert dialect.read_config(content | {"ssm_cfg": {"layer": "Mamba1", "dt_rank": "auto"}}) == config


def test_published_hf_configurations():
    """The configurations are those of `mamba-130m-hf`, with what it was converted from, and of `falcon-mamba-7b`."""
    dialect = dialect_of("hf")
    content = {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280, "expand": 2}
    content |= {"intermediate_size": 1536, "time_step_rank": 48, "state_size": 16, "conv_kernel": 4, "ssm_cfg": {}}
    content |= {"d_inner": 1536, "d_model": 768, "n_layer": 24, "fused_add_norm": True, "rms_norm": True}
    content |= {"pad_vocab_size_multiple": 8, "use_bias": False, "use_conv_bias": True, "initializer_range": 0.1}
    config = dialect.read_config(content)
    assert (config.vocab_size, config.intermediate_size, config.time_step_rank) == (50280, 1536, 48)
    content = {"model_type": "falcon_mamba", "hidden_size": 4096, "num_hidden_layers": 64, "vocab_size": 65024}
    content |= {"expand": 16, "intermediate_size": 8192, "time_step_rank": 256, "tie_word_embeddings": False}
    config = dialect.read_config(content)
    assert (config.intermediate_size, config.mixer_rms_eps, config.tie_word_embeddings) == (8192, 1e-6, False)


@pytest.mark.parametrize(
    ("format", "changes", "message"),
    [
        ("hf", {"mixer_rms_eps": 1e-6}, r"`mixer_rms_eps` must be left out \(only the `model_type` falcon"),
        ("hf", {"time_step_rank": "small"}, "`time_step_rank` must be an integer, at least 1, or"),
        ("hf", {"model_type": "falcon_mamba", "mixer_rms_eps": 0}, "`mixer_rms_eps` must be a number above 0"),
        ("hf", {"rms_norm": False}, "`rms_norm` must be True"),
        ("hf", {"intermediate_size": 8}, r"`backbone.layers.0.mixer.D`: got shape \(16,\), expected \(8,\)"),
        (
            "state-spaces",
            {"ssm_cfg": {"headdim": 64}},
            "`ssm_cfg.headdim` must be left out",
        ),
        ("state-spaces", {"ssm_cfg": {"layer": "Mamba2"}}, "do not fit mamba2|cannot be built|head_dim"),
        ("state-spaces", {"ssm_cfg": {"layer": "Mamba3"}}, "name the layer `Mamba2`, or none, .* got .*'Mamba3'"),
        ("state-spaces", {"ssm_cfg": None}, "must name the layer .* got None"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path, format, changes, message):
    ssmkit.save_pretrained(random_model(), tmp_path, format=format)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        ssmkit.from_pretrained(tmp_path)


def test_each_layer_of_state_spaces_goes_to_its_own_architecture(tmp_path):
    ssmkit.save_pretrained(random_model(), tmp_path / "one", format="state-spaces")
    assert "layer" not in json.loads((tmp_path / "one" / "config.json").read_text())["ssm_cfg"]
    second = Mamba2(Mamba2Config(**SMALL, head_dim=4), key=jax.random.key(0))
    ssmkit.save_pretrained(second, tmp_path / "two", format="state-spaces")
    assert describe(tmp_path / "one").architecture.model is Mamba
    assert describe(tmp_path / "two").architecture.model is Mamba2


def test_names_on_disk(tmp_path):
    ssmkit.save_pretrained(random_model("biases"), tmp_path, format="state-spaces")
    tensors = open_tensors(tmp_path / "pytorch_model.bin")
    assert tensors["lm_head.weight"] == tensors["backbone.embedding.weight"]
    prefix = "backbone.layers.1."
    layer = {name.removeprefix(prefix): t.shape for name, t in tensors.items() if name.startswith(prefix)}
    assert layer == {
        "norm.weight": (8,),
        "mixer.in_proj.weight": (32, 8),
        "mixer.in_proj.bias": (32,),
        "mixer.conv1d.weight": (16, 1, 3),
        "mixer.x_proj.weight": (7, 16),
        "mixer.dt_proj.weight": (16, 1),
        "mixer.dt_proj.bias": (16,),
        "mixer.A_log": (16, 3),
        "mixer.D": (16,),
        "mixer.out_proj.weight": (8, 16),
        "mixer.out_proj.bias": (8,),
    }


# The command line.


@pytest.mark.parametrize("name", ["padded", "falcon"])
def test_the_command_line_knows_it(tmp_path, run, name):
    tokenizer = ssmkit.Tokenizer.train(["the cat sat on the mat"] * 20, 290)
    config = MambaConfig(**SMALL | CONFIGS[name] | {"vocab_size": tokenizer.vocab_size, "num_hidden_layers": 1})
    folder, other, text = tmp_path / "model", tmp_path / "other", tmp_path / "text.txt"
    model = Mamba(config, key=jax.random.key(0))
    ssmkit.save_pretrained(model, folder)
    tokenizer.save(folder / "tokenizer.json")
    text.write_text("the cat sat")

    def output(*words) -> str:
        code, out, err = run(*words)
        assert code == 0, err
        return out

    result = json.loads(output("inspect", folder, "--json"))
    assert result["architecture"] == "mamba" and result["config"]["intermediate_size"] == 16
    assert result["parameters"] == sum(array.size for array in jax.tree.leaves(model))
    output("convert", folder, other, "--format", "hf" if name == "falcon" else "state-spaces")
    assert trees_equal_bitwise(ssmkit.from_pretrained(other), model)
    assert math.isfinite(json.loads(output("score", "--model", folder, text, "--json"))["perplexity"])
    assert output("generate", "the cat", "--model", folder, "--max-new-tokens", "4", "--temperature", "0").startswith(
        "the cat"
    )
