"""Where checkpoints lie: shards, folders, the hub, architectures of users; and what loading takes."""

import json
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import CONFIG, assert_same, edit_config, shard
from damage import refused
from plugins import install  # noqa: F401

from ssmkit.checkpoint import (
    Architecture,
    CheckpointError,
    Dialect,
    Source,
    check_writable,
    describe,
    from_pretrained,
    open_tensors,
    save_pretrained,
)
from ssmkit.models import Mamba2, Mamba2Config


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


def test_hub_failures_name_the_remedy(monkeypatch):
    import huggingface_hub

    def snapshot_download(repo_id, *, allow_patterns):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="no network.*Check the id and the connection"):
        from_pretrained("someone/mamba")


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
    install("ssmkit.architectures", "toy", Architecture("toy", int, (dialect,), Toy))
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


@pytest.fixture(scope="module")
def large():
    """A model whose largest matrix, which may be in memory twice, is a sixth of it: the bound is clear of noise."""
    config = Mamba2Config(vocab_size=8000, hidden_size=512, num_hidden_layers=12, tie_word_embeddings=True)
    return Mamba2(config, key=jax.random.key(0))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("format, cast", [("hf", False), ("state-spaces", False), ("hf", True)])
def test_peak_memory_is_close_to_the_weights(tmp_path, saved, large, format, cast):
    save_pretrained(large, tmp_path / "large", format=format)
    command = [sys.executable, "-c", MEASURE, str(saved), str(tmp_path / "large"), *(["cast"] if cast else [])]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert ratio <= 1.3
