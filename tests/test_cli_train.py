"""`ssmkit train`: configurations, runs, and what ends them."""

import dataclasses
import json
import os
import signal
import sys

import pytest
from command_line import GEOMETRY, TEXT, assert_one_line
from damage import full_disk

from ssmkit.cli import _train
from ssmkit.cli._hosts import Place, together
from ssmkit.models import Mamba2Config


pytestmark = pytest.mark.usefixtures("own_cache")


# train


@pytest.fixture
def train_words(tmp_path):
    (tmp_path / "train.txt").write_text(TEXT * 20, encoding="utf-8")
    (tmp_path / "valid.txt").write_text(TEXT, encoding="utf-8")
    model = "".join(f"{name} = {value}\n" for name, value in GEOMETRY.items())
    training = "steps = 4\nbatch_size = 2\ncontext = 8\nvocab_size = 260\nlog_every = 2\n"
    (tmp_path / "run.toml").write_text(f"[model]\n{model}time_step_limit = [0.0, inf]\n[training]\n{training}")
    files = [word for name in ("train", "valid") for word in (f"--{name}", tmp_path / f"{name}.txt")]
    return ["train", *files, "--out", tmp_path / "out", "--config", tmp_path / "run.toml"]


def test_train(run, train_words, tmp_path):
    out = tmp_path / "out"
    code, stdout, err = run(*train_words)
    assert code == 0
    assert [line.split()[0] for line in err.splitlines()] == ["2/4", "4/4"]
    assert "loss" in err and "valid" in err and "tokens/s" in err and "left" in err
    result = json.loads(run("score", "--model", out, tmp_path / "valid.txt", "--json")[1])
    line = f"{out}: {result['bits_per_byte']:.4f} bits per byte on {tmp_path / 'valid.txt'}\n"
    assert stdout == line
    assert run(*train_words) == (0, line, f"{out} holds this run, finished after 4 steps: nothing is left to do\n")
    configured = (out / "train.toml").read_text()
    words = [*train_words[:-1], out / "train.toml"]  # the configuration of the run, in full
    assert run(*words)[:2] == (0, line)
    assert_one_line(
        *run(*words, "--steps", "5", "--batch-size", "1"), "`steps`: 4 then, 5 now; `batch_size`: 2 then, 1 now"
    )
    assert_one_line(*run(*words, "--context", "0"), "`context` must be an integer, at least 1, got 0")
    assert (out / "train.toml").read_text() == configured


def test_print_config(run, tmp_path):
    """The default configuration, every key of it, is one that can be given."""
    code, out, err = run("train", "--print-config")
    assert (code, err) == (0, "")
    (tmp_path / "default.toml").write_text(out)
    default = _train._configuration(None)
    assert _train._configuration(tmp_path / "default.toml") == default
    fields = {field.name for field in dataclasses.fields(Mamba2Config)}
    unset = {"bos_token_id", "eos_token_id", "pad_token_id"}  # TOML has no null
    assert fields - set(default.model) == {"vocab_size", *unset}


def test_options_of_training_precede_the_file(tmp_path):
    (tmp_path / "run.toml").write_text(
        "[model]\nhidden_size = 32\nnum_hidden_layers = 1\n[training]\nsteps = 7\nseed = 3\n"
    )
    run = _train._configuration(tmp_path / "run.toml", steps=5, batch_size=3, context=None)
    assert (run.steps, run.batch_size, run.context, run.seed) == (5, 3, 256, 3)
    assert run.model["head_dim"] == 64


def test_termination_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt), together(Place(None, None, None, 30)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_interrupted_training(run, train_words, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("ssmkit.training._run.fit", interrupt)
    code, out, err = run(*train_words)
    assert (code, out) == (130, "") and "the same command continues" in err and "there is none yet" in err


def test_diverged_training(run, train_words, monkeypatch):
    def diverge(*arguments, **keywords):
        raise FloatingPointError("training diverged")

    monkeypatch.setattr("ssmkit.training._run.fit", diverge)
    assert run(*train_words) == (1, "", "error: training diverged\n")


@pytest.mark.parametrize("package", ["optax", "matplotlib", "orbax.checkpoint"])
def test_training_without_its_extra(run, train_words, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert run(*train_words) == (2, "", f"error: training needs {package}: pip install 'ssmkit[train]'\n")


@pytest.mark.parametrize(
    "content, problem",
    [
        ("[model]\nhidden_siz = 8\nnum_hidden_layers = 1", "`hidden_siz` is unknown (known: hidden_size, "),
        ("[model]\nhidden_size = 8", "`num_hidden_layers` is missing"),
        ("[model]\nhidden_size = 'x'\nnum_hidden_layers = 1", "Mamba2Config"),
        (
            "[model]\nhidden_size = 8\nnum_hidden_layers = 0\nhead_dim = 4",
            "`num_hidden_layers` must be an integer, at least 1",
        ),
        ("[training]\nsteps = 0", "`training.steps` must be an integer, at least 1"),
        ("nonsense", "is not valid TOML"),
        (
            "[model]\nhidden_size = 8\nnum_hidden_layers = 1\ntime_step_limit = [1]\nuse_bias = 3",
            "`use_bias` must be true or false, got 3; `time_step_limit` must be a list of 2 values, got [1]",
        ),
        (
            "[model]\nhidden_size = 8\nnum_hidden_layers = 1\ntie_word_embeddings = 'x'\n[training]\nseed = -1",
            "at least 0, got -1; [model] (Mamba2Config): `tie_word_embeddings` must be true or false, got 'x'",
        ),
        (
            f"[model]\nhidden_size = {2**62}\nnum_hidden_layers = {2**40}",
            "`hidden_size` must be an integer, at most 2147483647, got",
        ),
        ("[model]\nhidden_size = 1048576\nnum_hidden_layers = 1", "GiB of memory"),
        ("[model]\nhidden_size = 64\nnum_hidden_layers = 1000000000", "GiB of memory"),
        (
            f"[model]\nhidden_size = 64\nnum_hidden_layers = 1\n[training]\nvocab_size = {2**70}",
            "must be an integer, at most 1048576, got",
        ),
    ],
)
def test_bad_training_configuration(run, train_words, tmp_path, content, problem):
    (tmp_path / "run.toml").write_text(content)
    code, out, err = run(*train_words)
    assert_one_line(code, out, err, problem)
    assert not (tmp_path / "out").exists()


def test_damaged_training_state(run, train_words, tmp_path):
    (tmp_path / "out" / "states" / "3").mkdir(parents=True)
    assert_one_line(*run(*train_words), "does not fit this configuration or is damaged")


def test_training_on_a_full_disk(run, train_words, tmp_path):
    with full_disk(100):
        assert_one_line(*run(*train_words), f"{tmp_path / 'out' / 'run.json'}: File too large")
