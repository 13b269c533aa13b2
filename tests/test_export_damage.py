"""Artefacts that are damaged, or whose weights come from elsewhere: nothing else is ever run."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax import export

from ssmkit import CheckpointError, load_exported, save_pretrained
from ssmkit.export import _save


@pytest.fixture(scope="module")
def model(exported_source):
    return exported_source


@pytest.fixture
def copy(artefact_copy):
    return artefact_copy


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_from_elsewhere(model, artefact, copy, tmp_path, dtype):
    """Weights of every format of the architecture, from a folder and from a file, are cast like a checkpoint's."""
    (copy / "weights.safetensors").unlink()
    narrow = jax.tree.map(lambda x: x.astype(dtype), model)
    for format in ("hf", "state-spaces"):
        save_pretrained(narrow, tmp_path / format, format=format)
        (file,) = [path for path in (tmp_path / format).iterdir() if path.suffix != ".json"]
        for source in (tmp_path / format, file):
            weights = load_exported(copy, weights=source).weights
            assert all(weights[name].dtype == jnp.float32 for name in weights)
            assert bool(jnp.all(weights["embedding.weight"] == narrow.embedding.weight.astype(jnp.float32)))
    assert load_exported(copy, weights=artefact).weights.keys() == weights.keys()


def spoil(path, change):
    tensors = dict(safetensors.numpy.load_file(path))
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def several(tensors):
    del tensors["norm.weight"]
    tensors["more"] = np.zeros(2, np.float32)
    tensors["embedding.weight"] = tensors["embedding.weight"][:-1]


def test_weights_that_do_not_fit_are_all_listed(copy):
    spoil(copy / "weights.safetensors", several)
    with pytest.raises(CheckpointError) as caught:
        load_exported(copy)
    assert caught.value.problems == (
        "`norm.weight`: missing, expected shape (8,)",
        "`embedding.weight`: got shape (18, 8), expected (19, 8)",
        "`more`: unexpected, got shape (2,)",
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.update({"norm.weight": np.full(8, np.nan, np.float32)}), "`norm.weight` holds NaN or infinity"),
        (lambda t: t.update({"norm.weight": np.ones(8, np.int32)}), "got dtype int32, expected one of float64"),
    ],
)
def test_weights_that_are_no_numbers(copy, change, message):
    spoil(copy / "weights.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        load_exported(copy)


def test_no_weights(copy, tmp_path):
    (copy / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="There are no weights at .*Pass `weights=`"):
        load_exported(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no weights: expected one of weights.safetensors, "):
        load_exported(copy, weights=tmp_path / "empty")


# Damage.


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path, content: path.write_bytes(b""), "damaged: its SHA-256"),
        (lambda path, content: path.write_bytes(content[:-1]), "damaged: its SHA-256"),
        (lambda path, content: path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:]), "damaged"),
        (lambda path, content: path.unlink(), "No such file"),
    ],
    ids=["empty", "truncated", "flipped", "missing"],
)
def test_every_damaged_file_is_named(copy, damage, message):
    files = sorted(copy.rglob("*.bin"))
    for path in files:
        damage(path, path.read_bytes())
    with pytest.raises(CheckpointError) as caught:
        load_exported(copy)
    for path in files:
        assert any(f"{path.name}`: {message}" in problem for problem in caught.value.problems)


def test_every_truncation_of_the_manifest_is_noticed(copy):
    path = copy / "exported.json"
    content = path.read_bytes()
    for size in range(0, len(content) - 2, 97):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="cannot be read as JSON"):
            load_exported(copy)


def relaid(manifest, name, steps):
    manifest["layouts"]["hf"]["sources"]["norm.weight"] = {"name": name, "steps": steps}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.update(format="other"), "describes no exported model"),
        (lambda m: m.update(version=1), "has version 1 of the format"),
        (lambda m: m.pop("vocab_size"), "`vocab_size` is missing"),
        (lambda m: m.update(vocab_size=0), "`vocab_size` must be an integer, at least 1, got 0"),
        (lambda m: m.update(lengths=[16, 2]), "`lengths` must be increasing lengths, got"),
        (lambda m: m.update(weights=[]), r"`weights` must be a table of keys and values, got \[\]"),
        (
            lambda m: m["weights"].update(x={"dtype": "object", "shape": []}),
            "`weights.x.dtype` must be a dtype, got 'object'",
        ),
        (
            lambda m: m["cache"].update(x={"dtype": "bool", "shape": [-1]}),
            r"`cache.x.shape\[0\]` must be an integer, at least 0, got -1",
        ),
        (lambda m: m["programs"]["cpu"]["init"].update(path="../init.bin"), "a file of this folder"),
        (lambda m: m["programs"]["cpu"]["init"].update(path="/etc/passwd"), "a file of this folder"),
        (lambda m: m["programs"]["cpu"]["init"].update(sha256="0"), "a SHA-256"),
        (lambda m: m["programs"]["cpu"].pop("step"), "`step`: missing in `exported.json`"),
        (lambda m: m["programs"]["cpu"].update(step=m["programs"]["cpu"]["init"]), "are not what the manifest says"),
        (lambda m: m.update(vocab_size=20), "its results are not what the manifest says"),
        (lambda m: m.update(logits="bfloat16"), "its results are not what the manifest says"),
        (lambda m: m["weights"]["norm.weight"].update(shape=[9]), "its arguments are not what the manifest says"),
        (lambda m: m.update(layouts={"hf": {}}), "`layouts.hf.files` is missing"),
        (
            lambda m: m["layouts"]["hf"]["sources"].pop("norm.weight"),
            "`layouts.hf.sources` must have a source for every",
        ),
        (lambda m: relaid(m, "x", [["rotate", 1]]), "a step, one of reshape, transpose, slice, stack, got .*'rotate'"),
        (lambda m: relaid(m, "x", [["slice", 0, 9]]), "a slice of start, size, axis, got"),
        (lambda m: relaid(m, "x", [["slice", -1, 9, 0]]), "an integer, at least 0, got -1"),
        (lambda m: relaid(m, "x.{}", [["stack", 10**9]]), "must stack between 1 and 65536 tensors"),
        (lambda m: relaid(m, "x.{0.__class__}", [["stack", 2]]), "must hold one {} for each of 1 stacks"),
    ],
)
def test_a_manifest_that_says_something_else(copy, change, message):
    content = json.loads((copy / "exported.json").read_text())
    content["programs"] = {
        "cpu" if name == export.default_export_platform() else name: files
        for name, files in content["programs"].items()
    }
    change(content)
    (copy / "exported.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_exported(copy)


def replaced(folder: pathlib.Path, name: str, content: bytes) -> None:
    """Another program, with the right checksum."""
    manifest = json.loads((folder / "exported.json").read_text())
    entry = manifest["programs"][export.default_export_platform()][name]
    (folder / entry["path"]).write_bytes(content)
    entry["sha256"] = _save.File.of(entry["path"], content).sha256
    (folder / "exported.json").write_text(json.dumps(manifest))


def test_programs_that_do_more_than_compute_are_refused(artefact, copy):
    """The right arguments and results, and a custom call: nothing of it is run."""
    loaded = load_exported(artefact)
    weights = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in loaded.weights.items()}

    def init(weights):
        cache = loaded.init_cache()
        hidden = jnp.linalg.qr(weights["embedding.weight"])[0]
        return {name: x + hidden[0, 0] for name, x in cache.items()}

    hostile = export.export(jax.jit(init))(weights)
    replaced(copy, "init", bytes(hostile.serialize()))
    with pytest.raises(CheckpointError, match=r"is more than StableHLO: stablehlo.custom_call @"):
        load_exported(copy)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, bytes(range(256)), b"\x80\x04cos\nsystem\n"])
def test_programs_that_are_none(copy, content):
    replaced(copy, "step", content)
    with pytest.raises(CheckpointError, match="not readable by this JAX"):
        load_exported(copy)
