"""Configuration files of checkpoints: defaults, spellings, and what is refused."""

import json
import math
import pathlib
import random

import pytest
import safetensors.numpy
from checkpoint_files import CONFIG, assert_same, config_of, edit_config, random_model

from ssmkit.checkpoint import (
    CheckpointError,
    _dialect,
    describe,
    from_pretrained,
    save_pretrained,
)
from ssmkit.models import Mamba2Config


@pytest.fixture
def saved(tmp_path):
    save_pretrained(random_model(), tmp_path / "model")
    return tmp_path / "model"


def test_hf_defaults_are_those_of_its_class():
    hf = _dialect.architectures()[0].dialects[0]
    config = hf.read_config({"model_type": "mamba2"})
    assert (config.hidden_size, config.num_hidden_layers, config.n_groups, config.num_heads) == (4096, 64, 8, 128)
    assert (config.vocab_size, config.tie_word_embeddings, config.eos_token_id) == (32768, False, 2)


@pytest.mark.parametrize("limit", ["[0.0, Infinity]", '[0.0, {"__float__": "Infinity"}]'])
def test_infinity_in_either_spelling(saved, limit):
    text = (saved / "config.json").read_text()
    (saved / "config.json").write_text(text.replace('"model_type"', f'"time_step_limit": {limit}, "model_type"'))
    assert from_pretrained(saved).config == CONFIG


def test_a_written_configuration_is_strict_json(tmp_path):
    for name in ("plain", "limits"):
        save_pretrained(random_model(config_of(name)), tmp_path)
        assert "Infinity," not in (tmp_path / "config.json").read_text().replace('"Infinity"', "")


def test_dead_keys_are_ignored(saved):
    edit_config(saved, norm_before_gate=True, time_step_rank=256, transformers_version="4.44.0", torch_dtype="float16")
    assert from_pretrained(saved).config == CONFIG


def test_one_error_lists_every_bad_key(saved):
    edit_config(saved, hidden_act="relu", rms_norm=False, expand="two", n_groups=0, residual_multiplier=2.0)
    edit_config(saved, time_step_limit=[1.0, 0.5], use_bias=1, eos_token_id="two", layer_norm_epsilon=math.nan)
    with pytest.raises(CheckpointError) as error:
        describe(saved)
    keys = ("hidden_act", "rms_norm", "expand", "n_groups", "time_step_limit", "use_bias", "eos_token_id")
    for key in (*keys, "layer_norm_epsilon", "residual_multiplier"):
        said = [problem for problem in error.value.problems if problem.startswith(f"`{key}` must be ")]
        assert len(said) == 1 and ", got " in said[0]
    assert len(error.value.problems) == 9


def test_configurations_that_contradict_themselves(saved):
    edit_config(saved, num_heads=5)
    with pytest.raises(CheckpointError, match="num_heads"):
        describe(saved)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ssm_cfg": {}}, r"do not fit mamba as configured in `config.json` \(state-spaces format\)"),
        ({"ssm_cfg": {"headdim": 4}}, r"`ssm_cfg.headdim` must be left out \(only the layer `Mamba2`"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "must name the layer `Mamba2`"),
        ({"ssm_cfg": 3}, "must name the layer `Mamba2`"),
        (
            {"ssm_cfg": {"layer": "Mamba2", "headdim": 4, "d_ssm": 8}},
            r"`backbone.layers.0.mixer.D`: got shape \(4,\), expected \(2,\)",
        ),
        (
            {"attn_layer_idx": [1], "attn_cfg": {"causal": True}},
            "`attn_cfg.num_heads` is missing",
        ),
        ({"model_type": "other"}, "model_type 'other'"),
    ],
)
def test_state_spaces_models_that_are_not_plain_mamba2(tmp_path, changes, message):
    save_pretrained(random_model(), tmp_path, format="state-spaces")
    edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(tmp_path)


def test_published_state_spaces_configuration():
    state_spaces = _dialect.architectures()[0].dialects[1]
    content = {"d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}}
    content |= {"attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True}
    content |= {"fused_add_norm": True, "pad_vocab_size_multiple": 16, "tie_embeddings": True}
    assert state_spaces.matches(content)
    config = state_spaces.read_config(content)
    assert (config.padded_vocab_size, config.num_heads, config.n_groups) == (50288, 24, 1)
    assert config.tie_word_embeddings and config.time_step_limit == (0.0, math.inf)
    assert state_spaces.write_config is not None
    assert state_spaces.write_config(config, "float32") == content


def mistral(saved: pathlib.Path, folder: pathlib.Path):
    """The same weights as Mistral lays them out."""
    names = {"backbone.embeddings.weight": "backbone.embedding.weight"}
    tensors = safetensors.numpy.load_file(saved / "model.safetensors")
    tensors = {f"model.{names.get(name, name)}": value for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "consolidated.safetensors")
    content = {"dim": 64, "n_layers": 1, "vocab_size": 16, "n_groups": 2, "rms_norm": True, "residual_in_fp32": True}
    content |= {"fused_add_norm": True, "pad_vocab_size_multiple": 1, "tie_embeddings": False, "model_type": "mamba"}
    (folder / "params.json").write_text(json.dumps(content))


def test_mistral_is_read_and_not_written(tmp_path):
    model = random_model(Mamba2Config(vocab_size=16, hidden_size=64, num_hidden_layers=1, n_groups=2))
    save_pretrained(model, tmp_path / "hf")
    mistral(tmp_path / "hf", tmp_path)
    assert describe(tmp_path).dialect.name == "mistral"
    assert_same(from_pretrained(tmp_path), model)
    mistral(tmp_path / "hf", tmp_path / "hf")  # one folder holds both, as the published one does
    assert describe(tmp_path / "hf").dialect.name == "hf"
    assert describe(tmp_path / "hf" / "consolidated.safetensors").dialect.name == "mistral"
    (tmp_path / "hf" / "model.safetensors").unlink()
    assert describe(tmp_path / "hf").dialect.name == "mistral"
    with pytest.raises(CheckpointError, match=r"one of \['hf', 'state-spaces'\] for mamba2, got 'mistral'"):
        save_pretrained(model, tmp_path, format="mistral")


@pytest.mark.filterwarnings("ignore:.*has keys that are unknown")
def test_damaged_configurations_raise_checkpoint_error(saved):
    content = (saved / "config.json").read_bytes()
    generator = random.Random(0)
    for _ in range(300):
        position = generator.randrange(len(content))
        flipped = bytes([content[position] ^ generator.randrange(1, 256)])
        (saved / "config.json").write_bytes(content[:position] + flipped + content[position + 1 :])
        try:
            describe(saved)
        except CheckpointError:
            pass


def test_absurd_sizes(saved):
    for key in ("hidden_size", "vocab_size", "state_size", "conv_kernel"):
        content = (saved / "config.json").read_text()
        edit_config(saved, **{key: 2**62, "head_dim": 2**62 if key == "hidden_size" else 4})
        with pytest.raises(CheckpointError):
            from_pretrained(saved)
        (saved / "config.json").write_text(content)
