"""Which ids end a text: of the model, its configuration, the file of generation settings, an artefact."""

import dataclasses
import json

import jax
import pytest

import ssmkit
from ssmkit.checkpoint import CheckpointError, describe, from_pretrained, save_pretrained
from ssmkit.models import Mamba, Mamba2, Mamba2Config, MambaConfig


SIZES = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 3}
FAMILY = {"mamba": (Mamba, MambaConfig(**SIZES)), "mamba2": (Mamba2, Mamba2Config(**SIZES, head_dim=4))}


def model_of(name: str, **changes):
    build, config = FAMILY[name]
    return build(dataclasses.replace(config, **changes), key=jax.random.key(0))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(
    ("given", "kept", "stops"),
    [
        (None, None, ()),
        (0, 0, (0,)),
        ([3, 2, 3], (3, 2, 3), (3, 2)),
        ((2,), (2,), (2,)),
        (11, 11, ()),
        ([10, 11], (10, 11), (10,)),
    ],
)
def test_stop_tokens_are_those_of_the_configuration(name, given, kept, stops):
    model = model_of(name, eos_token_id=given)
    assert model.config.eos_token_id == kept and hash(model.config) is not None
    assert model.stop_tokens == stops


def test_other_models_have_none():
    mixers = [ssmkit.GatedMLP(4, intermediate_size=4, key=jax.random.key(0))]
    assert ssmkit.LanguageModel(vocab_size=5, width=4, mixers=mixers, key=jax.random.key(0)).stop_tokens == ()


@pytest.mark.parametrize("value", [-1, "2", 1.0, True, [1, -1], [[1]], [None]])
def test_ids_are_checked(value):
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        with pytest.raises(ValueError, match=name):
            Mamba2Config(**SIZES, head_dim=4, **{name: value})


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (None, None),
        (3, 3),
        (-1, None),
        ([10, 9], (10, 9)),
        ([3], (3,)),
        ([3, -1, None], (3,)),
        ([], None),
        ([-1], None),
    ],
)
def test_ids_of_checkpoints(tmp_path, name, stored, read):
    save_pretrained(model_of(name), tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text()) | dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"], stored)
    path.write_text(json.dumps(content))
    config = from_pretrained(tmp_path).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (read, read, read)
    save_pretrained(from_pretrained(tmp_path), tmp_path / "again")
    assert describe(tmp_path / "again").config == config
    if isinstance(read, tuple):
        assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == list(read)


@pytest.mark.parametrize("stored", ["</s>", 2.0, True, [1, "2"], [[1]], {"id": 1}, 2**63])
def test_ids_that_are_none(tmp_path, stored):
    save_pretrained(model_of("mamba2"), tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"eos_token_id": stored}))
    with pytest.raises(CheckpointError, match="`eos_token_id` must be the id of a token"):
        describe(tmp_path)
    path.write_text(text)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stored}))
    with pytest.raises(CheckpointError, match=r"generation_config.json(.|\n)*`eos_token_id` must be the id"):
        describe(tmp_path)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("format", ["hf", "state-spaces"])
@pytest.mark.parametrize(
    ("settings", "stops"),
    [({"eos_token_id": [7, 6, 99]}, (7, 6)), ({"eos_token_id": 5}, (5,)), ({"eos_token_id": None}, "own"), ({}, "own")],
)
def test_generation_settings_come_first(tmp_path, name, format, settings, stops):
    save_pretrained(model_of(name, eos_token_id=3), tmp_path, format=format)
    own = describe(tmp_path).config
    (tmp_path / "generation_config.json").write_text(json.dumps({"_from_model_config": True, "top_k": 3} | settings))
    model = from_pretrained(tmp_path)
    assert model.stop_tokens == (from_ids(own.eos_token_id) if stops == "own" else stops)
    assert dataclasses.replace(model.config, eos_token_id=own.eos_token_id) == own
    save_pretrained(model, tmp_path / "again")
    assert from_pretrained(tmp_path / "again").stop_tokens == model.stop_tokens


def from_ids(ids) -> tuple[int, ...]:
    return () if ids is None else (ids,)


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_damaged_generation_settings_are_named(tmp_path, text):
    save_pretrained(model_of("mamba2"), tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="generation_config.json"):
        from_pretrained(tmp_path)


def test_exported_models_have_them_too(tmp_path):
    model = model_of("mamba2", eos_token_id=[3, 2, 11])
    ssmkit.save_exported(model, tmp_path / "artefact", lengths=(4,))
    assert ssmkit.load_exported(tmp_path / "artefact").stop_tokens == (3, 2)
    path = tmp_path / "artefact" / "exported.json"
    for stored, stops in ((None, ()), (3, (3,)), ([], ())):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": stored}))
        assert ssmkit.load_exported(tmp_path / "artefact").stop_tokens == stops
