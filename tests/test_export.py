"""Artefacts: what they give is what the model gives, and nothing else is ever run."""

import functools
import json
import pathlib
import shutil
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import VOCAB, build, over
from jax import export
from registry import LANGUAGE_MODELS

import ssmkit
from ssmkit import CheckpointError, load_exported, save_exported, save_pretrained
from ssmkit.cli import main
from ssmkit.export import _save, is_exported
from ssmkit.models import Mamba2, Mamba2Config


LENGTHS = (2, 16)
PROMPTS = [[1, 2, 3], [4], list(range(1, 18)) * 2]
CONFIG = Mamba2Config(
    vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, state_size=4, head_dim=4, chunk_size=4, eos_token_id=3
)


@pytest.fixture(scope="module")
def model():
    return Mamba2(CONFIG, key=jax.random.key(0))


@pytest.fixture(scope="module")
def artefact(model, tmp_path_factory):
    """A folder that no test may change."""
    folder = tmp_path_factory.mktemp("export") / "model"
    save_exported(model, folder, lengths=LENGTHS)
    return folder


@pytest.fixture(scope="module")
def loaded(artefact):
    return load_exported(artefact)


@pytest.fixture
def copy(artefact, tmp_path):
    """A folder to spoil."""
    return shutil.copytree(artefact, tmp_path / "copy")


def close(got, expected, bound=1e-6):
    return float(jnp.max(jnp.abs(got - expected))) <= bound * float(jnp.max(jnp.abs(expected)))


# The same as the model.


@pytest.mark.parametrize("batch", [1, 3])
def test_the_engine_gives_the_same(model, loaded, batch):
    """One sequence runs the program for one, several that for any number; prompts of one and of more pieces."""
    prompts = PROMPTS[-batch:]
    got, expected = (ssmkit.generate(m, prompts, 8) for m in (loaded, model))
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert close(got.rows.logits, expected.rows.logits)


def test_sampling_streaming_and_scoring_give_the_same(model, loaded):
    sampler, key = ssmkit.Sampler(0.9), jax.random.key(1)
    expected = ssmkit.generate(model, [[1, 2]], 6, sampler, key=key)
    streamed = list(ssmkit.stream(loaded, [1, 2], 6, sampler, key=key))
    assert streamed == expected.tokens[0, : expected.lengths[0]].tolist()
    text = np.random.default_rng(0).integers(VOCAB, size=40)
    scores = [ssmkit.score(m, text) for m in (loaded, model)]
    assert scores[0].nats == pytest.approx(scores[1].nats, rel=1e-6)


@over(LANGUAGE_MODELS, "mamba2-bf16-no-conv-bias-padded-vocab")
def test_other_models(case, tmp_path):
    model = build(case)
    save_exported(model, tmp_path / "model", lengths=(4,))
    loaded = load_exported(tmp_path / "model")
    after = eqx.filter_jit(lambda m: m.prefill(jnp.arange(6), m.init_cache(), ssmkit.Extent(length=5))[0])
    assert close(after(loaded), after(model))


def test_methods_give_the_same(model, loaded):
    """With any split into pieces and single tokens, mapped once and twice."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(VOCAB, size=(2, 1, 5)), jnp.int32)
    logits = [eqx.filter_jit(lambda m: jax.vmap(jax.vmap(m))(tokens))(m) for m in (loaded, model)]
    assert close(*logits)
    assert close(eqx.filter_jit(lambda m: m(tokens[0, 0]))(loaded), logits[1][0, 0])
    step = eqx.filter_jit(lambda m, valid: m.step(tokens[0, 0, 0], m.init_cache(), valid=valid))
    after, before = step(loaded, jnp.asarray(False))[1], loaded.init_cache()
    assert after.keys() == before.keys() and all(bool(jnp.all(after[name] == before[name])) for name in before)
    assert close(step(loaded, None)[0], logits[1][0, 0, 0])


def test_no_path_of_a_source_file_gets_out(artefact):
    for path in artefact.rglob("*.bin"):
        assert b".py" not in path.read_bytes()


def test_two_of_the_same_files_share_executables(artefact, loaded):
    again = load_exported(artefact)
    assert again.programs == loaded.programs and hash(again.programs) == hash(loaded.programs)
    assert loaded.stop_tokens == (3,) and repr(loaded.programs) == f"<programs for {loaded.programs.platform}>"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.forward(jnp.ones(3, jnp.int32), m.init_cache(), ssmkit.Extent(2)), "`extent` must be left out"),
        (lambda m: m.step(jnp.asarray(1, jnp.int32), {}), "`cache` must be as `init_cache"),
    ],
)
def test_what_does_not_fit_is_named(loaded, call, message):
    with pytest.raises(ValueError, match=message):
        call(loaded)


def test_weights_cannot_be_mapped(loaded):
    several = eqx.tree_at(lambda m: m.weights, loaded, jax.tree.map(lambda x: x[None], loaded.weights))
    with pytest.raises(ValueError, match="weights of an exported model cannot be mapped"):
        eqx.filter_vmap(lambda m: m.step(jnp.asarray(1, jnp.int32), loaded.init_cache()))(several)


# Without the code of the model.

READER = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("ssmkit.models"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Refuse())
import ssmkit
model = ssmkit.load_exported(sys.argv[1], weights=sys.argv[2])
assert "ssmkit.models" not in sys.modules
print(json.dumps(ssmkit.generate(model, json.loads(sys.argv[3]), 8).tokens.tolist()))
"""


def test_another_process_generates_without_the_models_code(model, artefact, tmp_path):
    """And with the weights of an ordinary checkpoint, whose names the artefact knows."""
    save_pretrained(model, tmp_path, format="state-spaces")
    words = [sys.executable, "-W", "error", "-c", READER, str(artefact), str(tmp_path), json.dumps(PROMPTS[-1:])]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ssmkit.generate(model, PROMPTS[-1:], 8).tokens.tolist()


def test_plain_jax_reads_it(model, artefact):
    """As the documentation shows."""
    programs = {path.stem: export.deserialize(bytearray(path.read_bytes())) for path in artefact.glob("*/*t*.bin")}
    weights = safetensors.numpy.load_file(artefact / "weights.safetensors")
    cache = programs["init"].call(weights)
    logits, cache = programs["step"].call(weights, np.int32(5), cache, np.True_)
    assert close(logits, ssmkit.generate(model, [[5]], 0).rows.logits[0])
    assert {program.calling_convention_version for program in programs.values()} <= set(
        range(export.minimum_supported_calling_convention_version, 99)
    )


# Platforms and weights.


def test_programs_for_a_machine_that_is_not_here(model, tmp_path):
    save_exported(model, tmp_path, platforms=["tpu", "cuda", "tpu"], lengths=(4,), weights=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cuda", "exported.json", "tpu"]
    for path in tmp_path.glob("*/*.bin"):
        assert export.deserialize(bytearray(path.read_bytes())).platforms == (path.parent.name,)
    if jax.default_backend() == "cpu":
        with pytest.raises(CheckpointError, match="holds programs for cuda, tpu, and this process runs on cpu"):
            load_exported(tmp_path)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_from_elsewhere(model, artefact, copy, tmp_path, dtype):
    """Of every format of the architecture, from a folder and from a file, cast like a checkpoint's."""
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


def test_programs_that_do_more_than_compute_are_refused(model, loaded, copy):
    """The right arguments and results, and a custom call: nothing of it is run."""
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


def test_a_model_that_needs_a_custom_call_is_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(_save, "foreign_operations", lambda module: ["stablehlo.custom_call @f"])
    with pytest.raises(CheckpointError, match="is more than StableHLO"):
        save_exported(model, tmp_path / "model", lengths=(4,))
    assert list(tmp_path.iterdir()) == []


# Writing.


def test_only_an_artefact_is_replaced(model, copy, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "novel.txt").write_text("...")
    with pytest.raises(CheckpointError, match="is not empty and holds no exported model"):
        save_exported(model, folder)
    with pytest.raises(CheckpointError, match="is a file"):
        save_exported(model, folder / "novel.txt")

    before = sorted((copy / "exported.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr(_save, "export_programs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_exported(model, copy)
    assert sorted((copy / "exported.json").read_text()) == before
    save_exported(model, copy, lengths=(4,), weights=False, beside=[folder / "novel.txt"])
    assert is_exported(copy) and not (copy / "weights.safetensors").exists() and (copy / "novel.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "mine"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"platforms": ["gpu"]}, "`platforms` must be some of cpu, cuda, rocm, tpu, got \\['gpu'\\]"),
        ({"platforms": []}, "`platforms` must be some of"),
        ({"lengths": ()}, "`lengths` must be integers of at least 1"),
        ({"lengths": (0, 4)}, "`lengths` must be integers of at least 1"),
    ],
)
def test_options_that_make_no_sense(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        save_exported(model, tmp_path / "model", **options)


def test_flatbuffers_is_asked_for(model, artefact, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    for call in (lambda: save_exported(model, tmp_path / "model"), lambda: load_exported(artefact)):
        with pytest.raises(CheckpointError, match="pip install flatbuffers"):
            call()


# The command line.


def test_the_command_and_the_commands_that_read_it(model, tmp_path, capsys, monkeypatch):
    tokenizer = ssmkit.Tokenizer.train(["to be or not to be "] * 9, VOCAB if VOCAB > 256 else 260)
    config = Mamba2Config(**{**vars(CONFIG), "vocab_size": tokenizer.vocab_size, "eos_token_id": None})
    save_pretrained(Mamba2(config, key=jax.random.key(0)), tmp_path / "source")
    tokenizer.save(tmp_path / "source" / "tokenizer.json")
    monkeypatch.setattr("ssmkit.cli._models.enable_compilation_cache", lambda: None)
    monkeypatch.setattr("ssmkit.cli._generate.enable_compilation_cache", lambda: None)
    monkeypatch.setattr("ssmkit.export.save_exported", functools.partial(save_exported, lengths=(4,)))
    target = tmp_path / "out" / "artefact"
    assert main(["export", str(target), "--model", str(tmp_path / "source")]) == 0
    assert (target / "tokenizer.json").is_file()
    assert export.default_export_platform() in capsys.readouterr().out
    assert main(["generate", "to be", "--model", str(target), "-n", "5", "-t", "0"]) == 0
    assert capsys.readouterr().out.startswith("to be")
    assert main(["export", str(tmp_path / "source"), "--model", str(target)]) == 2
