"""Artefacts: what they give is what the model gives, and what is not written."""

import functools
import json
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from exported_models import CONFIG, PROMPTS, close
from helpers import VOCAB, build, over
from hybrid_variants import hybrid
from jax import export
from registry import LANGUAGE_MODELS

import ssmkit
from ssmkit import CheckpointError, load_exported, save_exported, save_pretrained
from ssmkit.cli import main
from ssmkit.export import _save, is_exported
from ssmkit.export._programs import take_apart
from ssmkit.models import Mamba2, Mamba2Config


@pytest.fixture(scope="module")
def model(exported_source):
    return exported_source


@pytest.fixture
def copy(artefact_copy):
    return artefact_copy


@pytest.fixture(scope="module")
def loaded(artefact):
    return load_exported(artefact)


# The same as the model.


@pytest.mark.parametrize("batch", [1, 3])
def test_the_engine_gives_the_same(model, loaded, batch):
    """One sequence runs the program for one, several that for any number; prompts of one and of more pieces."""
    prompts = PROMPTS[-batch:]
    got, expected = (ssmkit.generate(m, prompts, 8) for m in (loaded, model))
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert close(got.rows.logits, expected.rows.logits)


@pytest.mark.once
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


@pytest.mark.once
def test_layouts_are_those_of_the_family():
    """All families are built by one class of models; their configurations tell them apart."""
    model = hybrid("recurrent_gemma")
    layouts = _save._layouts(model, take_apart(model, 1))
    assert list(layouts) == ["hf"] and "model.final_norm.weight" in layouts["hf"].sources["norm.weight"].names


@pytest.mark.once
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
    assert main(["generate", "to be", "--model", str(target), "--max-new-tokens", "5", "-t", "0"]) == 0
    assert capsys.readouterr().out.startswith("to be")
    assert main(["export", str(tmp_path / "source"), "--model", str(target)]) == 2
