"""Checkpoints that ask for more than they hold, files that are none, and what is written in messages about them."""

import copy
import json
import os
import pickle
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from hostile import DIALECTS, save, set_key

from ssmkit import CheckpointError, from_pretrained
from ssmkit._plugins import Named
from ssmkit._reading import open_regular, read_regular
from ssmkit.checkpoint import _dialect, _skeleton, describe, number, open_tensors, shown
from ssmkit.checkpoint._errors import CheckpointError as Error
from ssmkit.checkpoint._json import LARGEST, read_json
from ssmkit.cli import main


pytestmark = pytest.mark.once


SIZES = {
    "hf": "hidden_size num_hidden_layers vocab_size state_size conv_kernel expand head_dim num_heads n_groups "
    "time_step_rank intermediate_size pad_vocab_size_multiple chunk_size",
    "state-spaces": "d_model n_layer vocab_size pad_vocab_size_multiple ssm_cfg.d_state ssm_cfg.d_conv ssm_cfg.expand "
    "ssm_cfg.headdim ssm_cfg.ngroups ssm_cfg.dt_rank ssm_cfg.d_ssm ssm_cfg.chunk_size",
}
SHAPES = set(  # of the sizes, what every dialect takes for one; others may be dead or unknown to it
    "hidden_size num_hidden_layers vocab_size state_size conv_kernel d_model n_layer ssm_cfg.d_state ssm_cfg.d_conv "
    "ssm_cfg.expand".split()
)


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path, "mamba2 hf")


# Sizes that the files cannot fill.


@pytest.mark.filterwarnings("ignore:.*has keys that are unknown")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_sizes_that_the_files_cannot_fill(tmp_path, dialect, capsys):
    folder = save(tmp_path, dialect)
    valid = (folder / "config.json").read_text()
    for key in SIZES[DIALECTS[dialect][1]].split():
        for size in (10**5, 2**31 - 1, 2**40, 2**62, 2**63 - 1):
            set_key(folder, key, str(size))
            for read in (describe, from_pretrained):
                try:
                    read(folder)
                except CheckpointError as error:
                    assert len(str(error)) < 10_000
                else:  # shapes are not compared when they are described
                    assert key not in SHAPES or (size == 10**5 and read is describe and "layer" not in key)
            if size == 2**40:
                assert main(["inspect", str(folder)]) == 2 or key not in SHAPES
                assert len(capsys.readouterr().err) < 10_000
            (folder / "config.json").write_text(valid)
    assert from_pretrained(folder)


def test_a_model_is_not_laid_out_before_its_layers_are_there(saved, monkeypatch):
    """One tensor more makes room for one layer more, which the rest of the tensors do not fill."""
    laid_out = []
    build = _skeleton.skeleton
    monkeypatch.setattr(
        _skeleton, "skeleton", lambda *parts: laid_out.append(parts[2].num_hidden_layers) or build(*parts)
    )
    set_key(saved, "num_hidden_layers", "5")
    with pytest.raises(CheckpointError, match="`backbone.layers.4.norm.weight`: missing, expected shape"):
        from_pretrained(saved)
    assert laid_out == [1]


def test_shapes_of_one_layer_are_those_of_all():
    for model, _ in DIALECTS.values():
        (architecture,) = [known for known in _dialect.architectures() if known.model is type(model)]
        parts = architecture, architecture.dialects[0], model.config, np.float32
        laid_out = jax.tree_util.tree_flatten_with_path(model)[0]
        assert {path: array.shape for path, array in _skeleton.arrays_of(*parts).items()} == {
            _skeleton.array_path(path): array.shape for path, array in laid_out
        }


def test_a_device_without_room_is_named(saved, monkeypatch):
    def refuse(values):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(jax.numpy, "array", refuse)
    with pytest.raises(CheckpointError, match="bytes does not fit on .*RESOURCE_EXHAUSTED"):
        from_pretrained(saved)


# Numbers and sizes of files.


@pytest.mark.parametrize("text", ["1" + "0" * 308, "9" * 4000, "9" * 9000, '{"__float__": 1' + "0" * 400 + "}"])
@pytest.mark.parametrize("file, key", [("config.json", "layer_norm_epsilon"), ("generation_config.json", "unknown")])
def test_long_integers_are_refused(saved, file, key, text):
    (saved / "generation_config.json").write_text("{}")
    path = saved / file
    path.write_text(path.read_text().replace("{", f'{{"{key}": {text},', 1).replace(",}", "}"))
    with pytest.raises(CheckpointError, match="an integer of .* digits|Exceeds the limit"):
        describe(saved)


def test_a_number_that_no_float_can_hold():
    with pytest.raises(ValueError, match="a number of at least 0"):
        number(10**400)
    assert number(float("inf")) == float("inf") and number(2) == 2.0


def test_large_descriptions_are_not_read(saved):
    for name in ("config.json", "generation_config.json"):
        content = (saved / "config.json").read_text()
        (saved / name).write_text(content + " " * LARGEST)
        with pytest.raises(CheckpointError, match="Larger than 4,194,304 bytes"):
            describe(saved)
        (saved / name).write_text(content)
    with open(saved / "model.safetensors", "r+b") as file:
        file.write(struct.pack("<Q", LARGEST + 1))
    with pytest.raises(CheckpointError, match="its header would take 4,194,305 bytes, and at most 4,194,304"):
        describe(saved)


@pytest.mark.filterwarnings("ignore:.*has keys that are unknown")
def test_messages_are_short(tmp_path, saved):
    long = CheckpointError("Wrong.", (f"`{'x' * 10_000}` \x1b[2J\ud800 {n}" for n in range(1000)))
    assert len(str(long)) < 10_000 and str(long).endswith("  - and 980 more") and len(long.problems) == 1000
    assert str(long).isprintable() is False and "\x1b" not in str(long) and "\ud800" not in str(long)
    for again in (pickle.loads(pickle.dumps(long)), copy.copy(long)):
        assert str(again) == str(long) and again.problems == long.problems
    for value in ("x" * 10_000, 10**5000, [[[[[[0] * 30] * 30] * 30]]], {str(n): "x" * 500 for n in range(999)}):
        assert len(shown(value)) <= 120
        set_key(saved, "use_bias", "3" if isinstance(value, int) else json.dumps(value))
        set_key(saved, "novelty" * 2000, '"x"')
        with pytest.raises(CheckpointError) as error:
            describe(saved)
        assert len(str(error.value)) < 2000
    assert shown(10**5000) == "an integer of 16610 bits" and shown("auto") == "'auto'" and shown([1.0]) == "[1.0]"
    assert Error is CheckpointError


# Files that are none.


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json", "shard.bin"]
)
def test_only_regular_files_are_opened(saved, name, kind):
    if name.endswith("index.json"):
        (saved / "model.safetensors").unlink()
    elif name == "shard.bin":
        (saved / "model.safetensors").rename(saved / "rest.safetensors")
        places = {"lm_head.weight": name, "backbone.norm_f.weight": "rest.safetensors"}
        (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (saved / name).unlink(missing_ok=True)
    {"pipe": os.mkfifo, "device": lambda path: os.symlink("/dev/zero", path), "folder": os.mkdir}[kind](saved / name)
    with pytest.raises(CheckpointError, match="[Nn]ot a regular file|Is a directory"):
        from_pretrained(saved)


def test_regular_files(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="Larger than 4 bytes"):
        read_regular(tmp_path / "link", 4)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_json(tmp_path / "loop")


# Indices.


@pytest.mark.parametrize("shard", ["model.safetensors.index.json", "other.index.json", "notes.txt", "config.json"])
def test_an_index_names_weight_files_only(saved, shard):
    (saved / "model.safetensors").rename(saved / "rest.safetensors")
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": shard, "x": "rest.safetensors"}}))
    (saved / "other.index.json").write_text(index.read_text())
    with pytest.raises(CheckpointError, match=f"got the shard '{shard}', which is no weight file"):
        from_pretrained(saved)


# Arguments.

CALLS = """
import sys
from ssmkit import from_pretrained
from ssmkit.checkpoint import describe
import numpy as np
sources = ["x" * 5000, None, 3, "", "a\\0b", b"x", ["x"]]
quantizations = [[], {}, 3, "int4", np.zeros(2), "x" * 5000]
dtypes = ["x" * 5000, [], {}, {"names": ["a"], "formats": [3]}, "(", 3, object(), "int8", "f4,f4"]
calls = [lambda source=source: from_pretrained(source) for source in sources]
calls += [lambda source=source: describe(source) for source in sources]
calls += [lambda quantize=quantize: from_pretrained(sys.argv[1], quantize=quantize) for quantize in quantizations]
calls += [lambda dtype=dtype: from_pretrained(sys.argv[1], dtype) for dtype in dtypes]
for call in calls:
    try:
        call()
    except Exception as error:
        print(type(error).__name__, len(str(error)) < 1000, str(error))
    else:
        print("accepted")
"""


def test_arguments_that_are_none(saved):
    """As users call it, without the types being checked at run time."""
    environment = os.environ | {"SSMKIT_TYPECHECK": "0"}
    command = [sys.executable, "-c", CALLS, str(saved)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 29
    assert [line for line in lines if not line.startswith("CheckpointError True `")] == []
    assert [sum(f"`{name}` must" in line for line in lines) for name in ("quantize", "dtype")] == [6, 9]


# Handing it to another process.


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_described_can_be_pickled(tmp_path, dialect, monkeypatch):
    found = describe(save(tmp_path, dialect))
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert again == found and again.dialect is found.dialect
        name = next(iter(found.tensors))
        np.testing.assert_array_equal(again.tensors[name].read(), found.tensors[name].read())
    pickled = pickle.dumps(found)
    monkeypatch.setattr(_dialect, "ARCHITECTURES", Named("of no package", {}))
    with pytest.raises(CheckpointError, match="No registered architecture is called"):
        pickle.loads(pickled)


def test_dtypes_survive_pickling(tmp_path):
    import ml_dtypes

    safetensors.numpy.save_file({"x": np.ones(2, ml_dtypes.bfloat16)}, tmp_path / "x.safetensors")
    tensors = open_tensors(tmp_path / "x.safetensors")
    assert pickle.loads(pickle.dumps(tensors)) == tensors
