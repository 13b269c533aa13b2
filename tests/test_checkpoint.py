"""Whole checkpoints: round trips, tensors that do not fit, and saving."""

import math
import os
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import CONFIG, CONFIGS, assert_same, config_of, edit_config, edit_weights, random_model, shard

from ssmkit.checkpoint import (
    CheckpointError,
    describe,
    from_pretrained,
    open_tensors,
    save_pretrained,
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("format", ["hf", "state-spaces"])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_bit_for_bit(tmp_path, name, format, dtype):
    inexpressible = {"hf": ("skip per channel",), "state-spaces": ("epsilon", "tokens")}
    model = random_model(config_of(name), dtype)
    if name in inexpressible[format] and name != "tokens":
        with pytest.raises(CheckpointError, match=f"{format} format cannot express this model"):
            save_pretrained(model, tmp_path, format=format)
        assert not list(tmp_path.iterdir())
        return
    save_pretrained(model, tmp_path, format=format)
    loaded = from_pretrained(tmp_path)
    if name in inexpressible[format]:  # ids of special tokens are lost, and nothing else
        loaded = eqx.tree_at(lambda m: m.embedding, model, loaded.embedding)
    assert_same(model, loaded)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_tied_heads_on_disk(tmp_path):
    model = random_model(config_of("tied"))
    save_pretrained(model, tmp_path, format="hf")
    save_pretrained(model, tmp_path, format="state-spaces")
    assert "lm_head.weight" not in open_tensors(tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path / "pytorch_model.bin")
    assert tensors["lm_head.weight"] == tensors["backbone.embedding.weight"]


def test_describe_reads_no_weights(saved):
    checkpoint = describe(saved)
    assert (checkpoint.architecture.name, checkpoint.dialect.name) == ("mamba2", "hf")
    assert checkpoint.config == CONFIG
    conv = checkpoint.tensors["backbone.layers.1.mixer.conv1d.weight"]
    assert (conv.shape, conv.dtype, conv.nbytes) == ((22, 1, 4), np.float32, 352)
    assert conv.path == saved / "model.safetensors"


def test_a_weight_file_is_a_source(saved):
    assert_same(from_pretrained(saved / "model.safetensors"), from_pretrained(str(saved)))


def test_dtypes(saved):
    stored = from_pretrained(saved)
    model = from_pretrained(saved, dtype="bfloat16")
    assert model.embedding.weight.dtype == jnp.bfloat16
    assert model.embedding.weight.tolist() == stored.embedding.weight.astype(jnp.bfloat16).tolist()
    mixer = model.blocks[0].mixer
    for kept in (mixer.recurrence.A_log, mixer.recurrence.dt_bias, mixer.D, mixer.norm.weight, model.norm.weight):
        assert kept.dtype == jnp.float32
    edit_weights(saved, backbone__layers__0__mixer__A_log=np.ones(4, ml_dtypes.bfloat16))
    assert from_pretrained(saved).blocks[0].mixer.recurrence.A_log.dtype == jnp.float32
    with pytest.raises(CheckpointError, match="`dtype` must be float32 or narrower"):
        from_pretrained(saved, dtype=jnp.int32)
    edit_weights(saved, backbone__embeddings__weight=np.zeros((11, 8)))
    with jax.enable_x64(False), pytest.raises(CheckpointError, match="`backbone.embeddings.weight` is float64"):
        from_pretrained(saved)
    assert from_pretrained(saved, dtype=jnp.float32).embedding.weight.dtype == jnp.float32


def test_one_error_lists_every_wrong_tensor(saved):
    edit_weights(
        saved,
        backbone__norm_f__weight=None,
        lm_head__weight=np.zeros((11, 9), np.float32),
        backbone__layers__0__mixer__D=np.zeros(4, np.int32),
        backbone__layers__2__norm__weight=np.zeros(8, np.float32),
    )
    with pytest.raises(CheckpointError) as error:
        from_pretrained(saved)
    assert len(error.value.problems) == 4
    for expected in (
        "`backbone.norm_f.weight`: missing, expected shape (8,)",
        "`lm_head.weight`: got shape (11, 9), expected (11, 8)",
        "`backbone.layers.0.mixer.D`: got dtype int32, expected one of float64",
        "`backbone.layers.2.norm.weight`: unexpected, got shape (8,)",
    ):
        assert f"- {expected}" in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_values_must_be_finite(saved, value, dtype):
    weight = np.zeros((11, 8), dtype)
    weight[-1, -1] = value
    edit_weights(saved, backbone__embeddings__weight=weight)
    with pytest.raises(CheckpointError, match="`backbone.embeddings.weight` holds NaN or infinity"):
        from_pretrained(saved)


def test_values_must_be_finite_after_the_cast(saved):
    edit_weights(saved, backbone__embeddings__weight=np.full((11, 8), 1e6, np.float32))
    with pytest.raises(CheckpointError, match="stored as float32, read as float16"):
        from_pretrained(saved, dtype=jnp.float16)


def test_tied_heads_must_agree(tmp_path):
    model = random_model(config_of("tied"))
    save_pretrained(model, tmp_path)
    weight = np.array(model.embedding.weight)
    edit_weights(tmp_path, lm_head__weight=weight)
    assert_same(from_pretrained(tmp_path), model)
    for other in (weight + 1, weight.astype(np.float16), weight[:5]):
        edit_weights(tmp_path, lm_head__weight=other)
        with pytest.raises(CheckpointError, match="`lm_head.weight`: differs from `backbone.embeddings.weight`"):
            from_pretrained(tmp_path)


def test_the_old_spelling_of_the_embedding(saved):
    model = from_pretrained(saved)
    weight = np.array(model.embedding.weight)
    edit_weights(saved, backbone__embeddings__weight=None, backbone__embedding__weight=weight)
    assert_same(from_pretrained(saved), model)
    edit_weights(saved, backbone__embeddings__weight=weight)
    with pytest.raises(CheckpointError, match="unexpected beside its other spelling"):
        from_pretrained(saved)


def strip(folder: pathlib.Path, prefix: str = "backbone.", *without: str) -> None:
    """Leave the prefix of every name out, and some tensors."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name not in without}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def test_files_of_base_models(tmp_path):
    model = random_model(config_of("tied"))
    save_pretrained(model, tmp_path)
    strip(tmp_path)
    assert "embeddings.weight" in open_tensors(tmp_path / "model.safetensors")
    assert_same(from_pretrained(tmp_path), model)
    assert_same(from_pretrained(shard(tmp_path)), model)


def test_base_models_without_a_head_are_no_language_models(saved):
    model = from_pretrained(saved)
    strip(saved)
    assert_same(from_pretrained(saved), model)
    strip(saved, "", "lm_head.weight")
    with pytest.raises(CheckpointError) as error:
        from_pretrained(saved)
    (problem,) = error.value.problems
    assert problem.startswith("`lm_head.weight`: missing, expected shape (11, 8): the configuration does not tie")
    edit_config(saved, tie_word_embeddings=True)
    assert from_pretrained(saved).head is None


def test_two_spellings_of_one_tensor(saved):
    edit_weights(saved, norm_f__weight=np.ones(8, np.float32))
    with pytest.raises(CheckpointError, match="unexpected beside its other spelling"):
        from_pretrained(saved)


def test_an_interrupted_save_changes_nothing(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def interrupt(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(random_model(config_of("tied")), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_saving_over_the_files_that_are_being_read(saved):
    model = from_pretrained(saved)
    save_pretrained(model, saved)
    assert_same(from_pretrained(saved), model)
