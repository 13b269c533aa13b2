"""Keys of configurations that no model here has: which are refused, which are ignored, and who says so."""

import json
import math
import pathlib
import subprocess
import sys
import warnings
from typing import Any

import jax
import pytest
import safetensors.numpy

from ssmkit.checkpoint import CheckpointError, describe, from_pretrained, save_pretrained
from ssmkit.models import Mamba, Mamba2, Mamba2Config, MambaConfig


pytestmark = pytest.mark.once


SIZES: dict[str, Any] = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 3}
MAMBA = Mamba(MambaConfig(**SIZES), key=jax.random.key(0))
FALCON = Mamba(MambaConfig(**SIZES, mixer_rms_eps=1e-6), key=jax.random.key(0))
MAMBA2 = Mamba2(Mamba2Config(**SIZES, head_dim=4), key=jax.random.key(0))
LARGE = Mamba2(Mamba2Config(vocab_size=16, hidden_size=64, num_hidden_layers=1), key=jax.random.key(0))


def mistral(folder: pathlib.Path) -> None:
    """As Mistral lays out its models; their other sizes are fixed."""
    save_pretrained(LARGE, folder)
    names = {"backbone.embeddings.weight": "backbone.embedding.weight"}
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors = {f"model.{names.get(name, name)}": value for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "consolidated.safetensors")
    (folder / "params.json").write_text(
        json.dumps({"model_type": "mamba", "dim": 64, "n_layers": 1, "vocab_size": 16, "n_groups": 1})
    )
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()


DIALECTS = {
    "mamba hf": lambda folder: save_pretrained(MAMBA, folder),
    "falcon hf": lambda folder: save_pretrained(FALCON, folder),
    "mamba2 hf": lambda folder: save_pretrained(MAMBA2, folder),
    "mamba state-spaces": lambda folder: save_pretrained(MAMBA, folder, format="state-spaces"),
    "mamba2 state-spaces": lambda folder: save_pretrained(MAMBA2, folder, format="state-spaces"),
    "mistral": mistral,
}
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)


def saved(folder: pathlib.Path, dialect: str, **changes: Any) -> pathlib.Path:
    """A checkpoint with these keys in its configuration besides; `...` removes one."""
    DIALECTS[dialect](folder)
    path = folder / ("params.json" if dialect == "mistral" else "config.json")
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    return path


HARMLESS = {"fuse_norm": True, "unsloth_version": "2024.8", "max_length": 20, "dt_rank": 48, "head_first": False}


@each_dialect
def test_unknown_keys_load_with_one_warning(tmp_path, dialect):
    DIALECTS[dialect](tmp_path)
    expected = from_pretrained(tmp_path)
    path = saved(tmp_path, dialect, **HARMLESS)
    with pytest.warns(UserWarning) as caught:
        model = from_pretrained(tmp_path)
    (warning,) = caught
    message = str(warning.message)
    assert message.startswith(f"`{path}` has keys that are unknown and were ignored: `dt_rank`, `fuse_norm`, `head_f")
    assert all(f"`{name}`" in message for name in HARMLESS) and "\n" not in message
    assert model.config == expected.config
    with pytest.warns(UserWarning) as caught:
        assert describe(tmp_path).config == expected.config
    assert len(caught) == 1


def test_many_unknown_keys_are_counted_on_one_line(tmp_path):
    saved(tmp_path, "mamba2 hf", **{f"zz\n{number:02}": number for number in range(23)})
    with pytest.warns(UserWarning) as caught:
        describe(tmp_path)
    (warning,) = caught
    message = str(warning.message)
    assert "\n" not in message and r"`zz\n19` and 3 more. If" in message
    with pytest.raises(CheckpointError) as error:
        describe(tmp_path, strict=True)
    assert r"  - `zz\n00`: got 0" in str(error.value).splitlines()


@each_dialect
def test_strict_refuses_them(tmp_path, dialect):
    DIALECTS[dialect](tmp_path)
    from_pretrained(tmp_path, strict=True)
    path = saved(tmp_path, dialect, **HARMLESS)
    for load in (describe, from_pretrained):
        with pytest.raises(CheckpointError) as error:
            load(tmp_path, strict=True)
        assert [problem.split("`")[1] for problem in error.value.problems] == sorted(HARMLESS)
        assert str(path) in str(error.value) and "`dt_rank`: got 48" in str(error.value)


CHANGES_RESULTS = {
    "attn_layer_indices": [9, 18, 27],
    "sliding_window": 4096,
    "rope_scaling": {"type": "yarn", "factor": 4.0},
    "residual_multiplier": 0.22,
    "embedding_multiplier": 12,
    "logits_scaling": 8.0,
    "final_logit_softcapping": 30.0,
    "num_experts": 8,
    "layers_block_type": ["mamba", "attention"],
    "layer_types": ["linear_attention", "full_attention"],
    "bidirectional": True,
}
ASKS_FOR_NOTHING = {
    "attn_layer_idx": [],
    "attn_layer_indices": None,
    "sliding_window": None,
    "rope_scaling": {},
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1,
    "logits_scaling": 1.0,
    "final_logit_softcapping": None,
    "num_experts": 0,
    "layers_block_type": [],
    "layer_types": ["linear_attention"],
    "bidirectional": False,
    "quantization_config": None,
    "quantization": None,
}


@each_dialect
def test_keys_known_to_change_results_are_refused(tmp_path, dialect):
    saved(tmp_path, dialect, **CHANGES_RESULTS)
    with pytest.raises(CheckpointError) as error:
        from_pretrained(tmp_path)
    assert {problem.split("`")[1] for problem in error.value.problems} == set(CHANGES_RESULTS)
    assert "`sliding_window` must be left out (this architecture has no such attention), got 4096" in str(error.value)
    assert "`logits_scaling` must be 1 (this architecture has no such factor), got 8.0" in str(error.value)


@each_dialect
def test_they_load_where_they_ask_for_nothing(tmp_path, dialect):
    saved(tmp_path, dialect, **ASKS_FOR_NOTHING)
    assert describe(tmp_path, strict=True).config == from_pretrained(tmp_path).config


@pytest.mark.parametrize("value", [True, 0, 2, "1", [1], math.inf])
def test_a_factor_that_is_not_one(tmp_path, value):
    saved(tmp_path, "mamba2 hf", residual_multiplier=value)
    with pytest.raises(CheckpointError, match="`residual_multiplier` must be 1 "):
        describe(tmp_path)


def test_arguments_of_the_mixer_that_are_unknown(tmp_path):
    path = saved(tmp_path, "mamba2 state-spaces")
    content = json.loads(path.read_text())
    content["ssm_cfg"] |= {"novelty": 1}
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="`ssm_cfg.novelty`"):
        from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="`ssm_cfg.novelty`: got 1"):
        from_pretrained(tmp_path, strict=True)


# Vocabularies that other software resized.


@pytest.mark.parametrize("multiple", [8, 1, 16, 64, 0, "8", None])
@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name.endswith("hf")])
def test_a_multiple_alone_says_nothing_in_an_hf_file(tmp_path, dialect, multiple):
    DIALECTS[dialect](tmp_path)
    expected = describe(tmp_path).config
    saved(tmp_path, dialect, pad_vocab_size_multiple=multiple)
    assert describe(tmp_path, strict=True).config == expected
    assert from_pretrained(tmp_path).vocab_size == 11


def test_a_padded_vocabulary_that_other_software_resized(tmp_path):
    """It keeps our two keys, which say nothing then."""
    config = MambaConfig(**SIZES, pad_vocab_size_multiple=8)
    save_pretrained(Mamba(config, key=jax.random.key(0)), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert (content["vocab_size"], content["unpadded_vocab_size"], content["pad_vocab_size_multiple"]) == (16, 11, 8)
    assert describe(tmp_path, strict=True).config == config
    for rows in (20, 13):
        resized = MambaConfig(**SIZES | {"vocab_size": rows})
        save_pretrained(Mamba(resized, key=jax.random.key(0)), tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(content | {"vocab_size": rows}))
        with pytest.warns(UserWarning, match="unknown and were ignored: `unpadded_vocab_size`. If"):
            assert from_pretrained(tmp_path).config == resized
        with pytest.raises(CheckpointError, match="`unpadded_vocab_size`: got 11"):
            describe(tmp_path, strict=True)


def test_files_without_unknown_keys_do_not_warn(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, dialect in enumerate(DIALECTS):
            DIALECTS[dialect](tmp_path / str(number))
            from_pretrained(tmp_path / str(number))


def test_the_command_line_says_it_in_one_line(tmp_path):
    saved(tmp_path, "mamba2 hf", **HARMLESS)
    words = [sys.executable, "-m", "ssmkit", "inspect", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"warning: `{tmp_path / 'config.json'}` has keys that are unknown and were ignored: `dt_rank`"
    )
