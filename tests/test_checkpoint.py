"""Whole checkpoints: round trips, detection, strictness, hostile files."""

import json
import math
import os
import pathlib
import random
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from damage import refused
from plugins import install  # noqa: F401

from ssmkit.checkpoint import (
    Architecture,
    CheckpointError,
    Dialect,
    Source,
    _dialect,
    check_writable,
    describe,
    from_pretrained,
    open_tensors,
    save_pretrained,
)
from ssmkit.checkpoint._torch_pickle import write_torch_pickle
from ssmkit.models import Mamba2, Mamba2Config


SMALL: dict[str, Any] = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 3, "head_dim": 4}
CONFIG = Mamba2Config(**SMALL)
CONFIGS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "padded": {"pad_vocab_size_multiple": 8, "tie_word_embeddings": True},
    "biases": {"use_bias": True, "use_conv_bias": False},
    "groups": {"n_groups": 2, "conv_kernel": 3, "chunk_size": 8},
    "limits": {"time_step_limit": (0.001, math.inf), "residual_in_fp32": False, "time_step_min": 0.01},
    "tokens": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None},
    "epsilon": {"layer_norm_epsilon": 1e-6},
    "skip per channel": {"D_has_hdim": True},
}


def config_of(name: str) -> Mamba2Config:
    return Mamba2Config(**SMALL, **CONFIGS[name])


def random_model(config=CONFIG, dtype=jnp.float32) -> Mamba2:
    """No two arrays alike, and none constant."""
    model = Mamba2(config, key=jax.random.key(0), dtype=dtype)
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), x.dtype), model)


def assert_same(a, b):
    """Equal structure, configuration, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def edit_config(folder: pathlib.Path, **changes):
    """Set keys of `config.json`; `...` removes one."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_weights(folder: pathlib.Path, **changes):
    """Set tensors of `model.safetensors`; `None` removes one. `__` stands for a dot."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | {name.replace("__", "."): value for name, value in changes.items()}
    safetensors.numpy.save_file({name: value for name, value in tensors.items() if value is not None}, path)


@pytest.fixture
def saved(tmp_path):
    save_pretrained(random_model(), tmp_path / "model")
    return tmp_path / "model"


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


# Configurations


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
            {"attn_layer_idx": [1]},
            r"`attn_layer_idx` must be left out \(layers of attention are not supported\), got \[1\]",
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


# Containers


def shard(saved: pathlib.Path, suffix=".safetensors") -> pathlib.Path:
    """Split the weights in two; returns the index."""
    tensors = safetensors.numpy.load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    stem = {".safetensors": "model", ".bin": "pytorch_model"}[suffix]
    write = {
        ".safetensors": safetensors.numpy.save_file,
        ".bin": lambda tensors, path: write_torch_pickle(path, tensors),
    }
    places = {}
    for number in (1, 2):
        part = dict(list(tensors.items())[number - 1 :: 2])
        name = f"{stem}-0000{number}-of-00002{suffix}"
        write[suffix](part, saved / name)
        places |= dict.fromkeys(part, name)
    index = saved / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(saved, suffix):
    model = from_pretrained(saved)
    index = shard(saved, suffix)
    assert_same(from_pretrained(saved), model)
    assert_same(from_pretrained(index), model)
    content = json.loads(index.read_text())
    first, second = sorted(set(content["weight_map"].values()))
    content["weight_map"] = {
        name: first if name == "lm_head.weight" else place
        for name, place in content["weight_map"].items()
        if name != "backbone.norm_f.weight"
    } | {"extra": first}
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="`extra` is missing in .*") as error:
        from_pretrained(saved)
    assert any("backbone.norm_f.weight` lies in" in problem for problem in error.value.problems)
    (saved / second).unlink()
    with pytest.raises(CheckpointError, match=second):
        from_pretrained(saved)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "..", "", "a\\b", "c:x", "sub/x", "\0", "x" * 999 + ".bin"]
)
def test_shards_stay_in_their_folder(saved, name):
    index = shard(saved)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(CheckpointError, match="must name files of its own folder"):
        from_pretrained(saved)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{", "\xff", "[" * 100_000]
)
def test_malformed_indices(saved, text):
    shard(saved).write_text(text, "latin-1")
    with pytest.raises(CheckpointError, match="index.json"):
        from_pretrained(saved)


def test_truncated_or_damaged_safetensors_load_or_raise_checkpoint_error(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"x": np.ones(3, np.float32), "y": np.ones((2, 2), ml_dtypes.bfloat16)}, path)
    size = path.stat().st_size
    assert refused(path, open_tensors, flips=4) > size


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


# Sources


def test_sources_that_hold_nothing(tmp_path, saved):
    with pytest.raises(CheckpointError, match="known: mamba2 in the hf format, with `config.json`"):
        from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="neither a folder, a file nor the id"):
        from_pretrained(tmp_path / "missing")
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights: expected `model.safetensors` or"):
        from_pretrained(saved)
    with pytest.raises(CheckpointError, match="is no weight file"):
        from_pretrained(saved / "config.json")
    edit_config(saved, model_type="llama")
    with pytest.raises(CheckpointError, match="got model_type 'llama'"):
        from_pretrained(saved)


def test_hub_models_are_fetched_file_by_file(saved, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(repo_id, *, allow_patterns):
        asked.append(allow_patterns)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    index = shard(saved)
    assert from_pretrained("someone/mamba").config == CONFIG
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert asked == [
        ["adapter_config.json", "config.json", "generation_config.json", "params.json"],
        ["model.safetensors"],
        [index.name],
        shards,
    ]


def test_hub_models_are_found_in_the_cache_without_a_network(saved, tmp_path):
    repository = tmp_path / "hub" / "models--someone--mamba"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    saved.rename(repository / "snapshots" / ("0" * 40))
    script = "from ssmkit.checkpoint import describe; print(describe('someone/mamba').config.hidden_size)"
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=offline, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "8"


def test_absurd_sizes(saved):
    for key in ("hidden_size", "vocab_size", "state_size", "conv_kernel"):
        content = (saved / "config.json").read_text()
        edit_config(saved, **{key: 2**62, "head_dim": 2**62 if key == "hidden_size" else 4})
        with pytest.raises(CheckpointError):
            from_pretrained(saved)
        (saved / "config.json").write_text(content)


def test_hub_failures_name_the_remedy(monkeypatch):
    import huggingface_hub

    def snapshot_download(repo_id, *, allow_patterns):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="no network.*Check the id and the connection"):
        from_pretrained("someone/mamba")


# Saving


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


class Toy(eqx.Module):
    """An architecture of a user's own."""

    config: int = eqx.field(static=True)
    layers: list[dict[str, jax.Array]]

    def __init__(self, config, *, key, dtype=jnp.float32):
        self.config = config
        self.layers = [{"w": jax.random.normal(key, (config, 2), dtype)} for _ in range(11)]


def test_an_architecture_of_an_installed_package(tmp_path, install):  # noqa: F811
    with pytest.raises(CheckpointError, match="`Toy` is of no known architecture"):
        save_pretrained(Toy(3, key=jax.random.key(0)), tmp_path)
    dialect = Dialect(
        name="mine",
        config_file="toy.json",
        weight_files=("toy.bin",),
        matches=lambda content: "toy" in content,
        read_config=lambda content: content["toy"],
        write_config=lambda config, dtype: {"toy": config},
        names=lambda config: {f"layers.{i}.w": Source(f"layer{i}/w") for i in range(11)},
    )
    install("ssmkit.architectures", "toy", Architecture("toy", int, Toy, (dialect,)))
    model = Toy(3, key=jax.random.key(0))
    check_writable(model, format="mine")
    check_writable(model)
    with pytest.raises(CheckpointError, match=r"`format` must be one of \['mine'\]"):
        check_writable(model, format="hf")
    save_pretrained(model, tmp_path, format="mine")
    assert "layer10/w" in describe(tmp_path).tensors
    assert_same(from_pretrained(tmp_path), model)


# Memory

MEASURE = """
import sys, jax, jax.numpy as jnp
from ssmkit.checkpoint import from_pretrained
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":"))
from_pretrained(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
model = from_pretrained(sys.argv[2], dtype=jnp.bfloat16 if len(sys.argv) > 3 else None)
weights = sum(x.nbytes for x in jax.tree.leaves(model))
print((kilobytes("VmHWM") - before) * 1024 / weights)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("format, cast", [("hf", False), ("state-spaces", False), ("hf", True)])
def test_peak_memory_is_close_to_the_weights(tmp_path, saved, format, cast):
    config = Mamba2Config(vocab_size=16000, hidden_size=512, num_hidden_layers=12, tie_word_embeddings=True)
    save_pretrained(Mamba2(config, key=jax.random.key(0)), tmp_path / "large", format=format)
    command = [sys.executable, "-c", MEASURE, str(saved), str(tmp_path / "large"), *(["cast"] if cast else [])]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert ratio <= 1.3
