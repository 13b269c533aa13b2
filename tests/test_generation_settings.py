"""`generation_config.json`: how a checkpoint is meant to generate, and what the command line makes of it."""

import json
import pickle
import shutil

import jax
import pytest
from command_line import assert_one_line

import ssmkit
from ssmkit.checkpoint import CheckpointError, GenerationSettings, describe, generation_settings
from ssmkit.cli._sampling import SamplingOptions


pytestmark = pytest.mark.once

FILE = "generation_config.json"


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


def test_they_are_read_in_one_place(folder):
    """By `describe` too; values without effect are none."""
    assert generation_settings(folder) == GenerationSettings() == describe(folder).generation
    settings = {"eos_token_id": [7, 6], "do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 0.95, "min_p": 0.0}
    (folder / FILE).write_text(json.dumps(settings | {"repetition_penalty": 1.05, "max_length": 4096}))
    expected = GenerationSettings((7, 6), True, 0.6, None, 0.95, None, 1.05)
    assert generation_settings(folder / "model.safetensors") == expected
    found = describe(folder)
    assert found.generation == expected and found.config.eos_token_id == (7, 6)
    assert pickle.loads(pickle.dumps(found)).generation == expected


def test_every_mistake_is_named(folder):
    (folder / FILE).write_text(json.dumps({"temperature": "hot", "top_p": 2, "do_sample": 1, "top_k": 0.5}))
    for read in (generation_settings, describe):
        with pytest.raises(CheckpointError) as error:
            read(folder)
        text = str(error.value)
        assert f"{FILE}` holds settings for generation that are none.\n" in text
        assert "`temperature` must be 0, or a finite number of at least 1e-6, got 'hot'" in text
        assert "`top_p` must be a number in (0, 1], got 2" in text
        assert "`do_sample` must be true or false, got 1" in text and "`top_k` must be an integer, got 0.5" in text


def test_they_are_of_the_revision(folder, monkeypatch):
    asked = []

    def snapshot_download(repo_id, *, allow_patterns, **keywords):
        asked.append((repo_id, allow_patterns, keywords))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert generation_settings("someone/mamba", revision="v1.0") == GenerationSettings()
    assert asked == [("someone/mamba", [FILE], {"revision": "v1.0"})]


TAIL = "top_p 0.95, min_p 0.1, repetition_penalty 1.05"
NONE = SamplingOptions(None, None, None, None, None)
FULL = GenerationSettings(None, True, 0.6, 20, 0.95, 0.1, 1.05)


@pytest.mark.parametrize(
    ("settings", "given", "expected", "told"),
    [
        (GenerationSettings(), {}, (0.8, None, None, None, None), ""),
        (GenerationSettings(), {"top_p": 0.5}, (0.8, None, 0.5, None, None), ""),
        (
            FULL,
            {},
            (0.6, 20, 0.95, 0.1, 1.05),
            f"temperature 0.6, top_k 20, {TAIL}",
        ),
        (
            FULL,
            {"temperature": 0.0, "top_k": 5},
            (0.0, 5, 0.95, 0.1, 1.05),
            "top_p 0.95, min_p 0.1, repetition_penalty 1.05",
        ),
        (FULL, dict(zip(NONE._fields, [2.0, 3, 0.4, 0.5, 1.6], strict=True)), (2.0, 3, 0.4, 0.5, 1.6), ""),
        (GenerationSettings(do_sample=True), {}, (1.0, None, None, None, None), "temperature 1"),
        (GenerationSettings(top_p=0.9), {}, (1.0, None, 0.9, None, None), "temperature 1, top_p 0.9"),
        (GenerationSettings(repetition_penalty=1.2), {}, (0.8, None, None, None, 1.2), "repetition_penalty 1.2"),
        (GenerationSettings(None, False, 0.6, 20, None, None, 1.2), {}, (0.0, 20, None, None, 1.2), None),
        (GenerationSettings(do_sample=False, temperature=0.6), {"top_k": 3}, (0.8, 3, None, None, None), ""),
        (GenerationSettings(temperature=0.8), {}, (0.8, None, None, None, None), "temperature 0.8"),
    ],
)
def test_options_come_first_then_the_file(settings, given, expected, told):
    options = NONE._replace(**given)
    found = options.completed(settings)
    assert found == expected
    if told is not None:
        assert found.told(options, settings) == ({"sampling": f"{told} (generation_config.json)"} if told else {})


def test_generate_follows_the_file(run, folder):
    """And says so; an option of the user comes first, and a file that is wrong is named."""
    words = ("generate", "To be", "-m", folder, "--max-new-tokens", "12", "--seed", "5")
    plain = run(*words)
    assert plain[1] == run(*words, "-t", "0.8")[1] and "sampling" not in plain[2]
    (folder / FILE).write_text(json.dumps({"do_sample": True, "temperature": 1.5, "top_k": 20}))
    code, out, err = run(*words)
    assert code == 0 and "sampling     temperature 1.5, top_k 20 (generation_config.json)\n" in err
    model, tokenizer = ssmkit.from_pretrained(folder), ssmkit.Tokenizer.from_file(folder)
    expected = ssmkit.generate(
        model, "To be", 12, ssmkit.Sampler(1.5, 20), key=jax.random.key(5), tokenizer=tokenizer
    ).texts[0]
    assert out.rstrip("\n") == f"To be{expected}".rstrip("\n")
    assert run(*words, "-t", "0")[1] != out
    (folder / FILE).write_text(json.dumps({"do_sample": False}))
    code, greedy, err = run(*words)
    assert greedy == run(*words, "-t", "0")[1] and "seed" not in err
    assert "sampling     temperature 0 (generation_config.json)\n" in err
    (folder / FILE).write_text('{"top_p": -1}')
    code, out, err = run(*words)
    assert (code, out) == (2, "") and "`top_p` must be a number in (0, 1], got -1" in err


def test_options_are_checked_before_anything_is_read(run):
    assert_one_line(
        *run("generate", "x", "-m", "nowhere", "--top-p", "2", "-t", "-1"), "--temperature must be at least"
    )
