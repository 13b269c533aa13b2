"""Mistakes in calls of public functions: one sentence of our own, with the run-time type checker and without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import ssmkit
from ssmkit import checkpoint, export, models, training


KEY = jax.random.key(0)
MODEL = ssmkit.LanguageModel(7, 4, [], key=KEY)
CONFIG = training.TrainConfig(steps=1, batch_size=1, context=8)
IDS = np.zeros(40, np.int32)
SIZES = {"vocab_size": 7, "num_hidden_layers": 1}
SOURCE = "`source` must be a path or the id of a model on the Hugging Face hub, got "
ONE_KEY = "`key` must be one key, made by `jax.random.key(seed)`, got "
ACTIVATIONS = "elu, gelu, gelu_exact, gelu_pytorch_tanh, relu, relu2, sigmoid, silu, softplus, tanh"
SHAPE = "`shape` must be a tuple of integers, each at least 1, got "
NO_MODEL = "`model` must be an `ssmkit.AbstractLanguageModel`, got "


def ignore(_):
    """Called with nothing of interest."""


def fit(model=MODEL, config=CONFIG, train=IDS, valid=IDS, directory="nowhere", report=ignore, keep=ignore):
    training.fit(model, config, train, valid, directory, report, keep)


def train_files(make_model=ignore, config=CONFIG, train="x", valid="x", out="nowhere", report=ignore):
    training.train_files(make_model, config, train=train, valid=valid, out=out, report=report)


CALLS = {
    "from_pretrained(None)": lambda: checkpoint.from_pretrained(None),
    "from_pretrained(quantize)": lambda: checkpoint.from_pretrained("x", quantize=[]),
    "from_pretrained(dtype)": lambda: checkpoint.from_pretrained("x", dtype=3),
    "from_pretrained(strict)": lambda: checkpoint.from_pretrained("x", strict="no"),
    "describe(3)": lambda: checkpoint.describe(3),
    "locate(3)": lambda: checkpoint.locate(3),
    "save_pretrained(3)": lambda: checkpoint.save_pretrained(3, "nowhere"),
    "save_pretrained(directory)": lambda: checkpoint.save_pretrained(MODEL, None),
    "save_pretrained(tokenizer)": lambda: checkpoint.save_pretrained(MODEL, "nowhere", tokenizer="x"),
    "load_exported(3)": lambda: export.load_exported(3),
    "load_exported(weights)": lambda: export.load_exported("x", weights=3),
    "save_exported(3)": lambda: export.save_exported(3, "nowhere"),
    "save_exported(directory)": lambda: export.save_exported(MODEL, None),
    "save_exported(platforms)": lambda: export.save_exported(MODEL, "nowhere", platforms="cpu"),
    "save_exported(lengths)": lambda: export.save_exported(MODEL, "nowhere", lengths=[1.5]),
    "save_exported(beside)": lambda: export.save_exported(MODEL, "nowhere", beside=[3]),
    "fit(model)": lambda: fit(model=3),
    "fit(config)": lambda: fit(config={}),
    "fit(train)": lambda: fit(train=None),
    "fit(valid)": lambda: fit(valid=np.zeros(40)),
    "fit(directory)": lambda: fit(directory=None),
    "fit(report)": lambda: fit(report=None),
    "fit(keep)": lambda: fit(keep=3),
    "train_files(make_model)": lambda: train_files(make_model=MODEL.vocab_size),
    "train_files(config)": lambda: train_files(config=None),
    "train_files(train)": lambda: train_files(train=3),
    "train_files(out)": lambda: train_files(out=None),
    "TrainConfig(steps)": lambda: training.TrainConfig(steps="3"),
    "TrainConfig.from_toml": lambda: training.TrainConfig.from_toml(3),
    "Mamba2Config": lambda: models.Mamba2Config(hidden_size="x", **SIZES),
    "MambaConfig": lambda: models.MambaConfig(hidden_size=2.5, **SIZES),
    "Linear(0)": lambda: ssmkit.Linear(0, 4, key=KEY),
    "Linear('4')": lambda: ssmkit.Linear("4", 4, key=KEY),
    "Linear(key)": lambda: ssmkit.Linear(4, 4, key=3),
    "Linear(keys)": lambda: ssmkit.Linear(4, 4, key=np.zeros((1, 2), np.uint32)),
    "Linear(dtype)": lambda: ssmkit.Linear(4, 4, dtype="x", key=KEY),
    "Linear(use_bias)": lambda: ssmkit.Linear(4, 4, use_bias="x", key=KEY),
    "BlockDiagonalLinear": lambda: ssmkit.BlockDiagonalLinear(4, 4, "2", key=KEY),
    "Embedding": lambda: ssmkit.Embedding(-1, 4, key=KEY),
    "CausalConv1d": lambda: ssmkit.CausalConv1d(4, 2.5, key=KEY),
    "GatedMLP": lambda: ssmkit.GatedMLP(4, intermediate_size=4, activation=3, key=KEY),
    "GLAMixer('16')": lambda: models.GLAMixer("16", key=KEY),
    "GLAMixer(feature_map)": lambda: models.GLAMixer(16, feature_map="x", key=KEY),
    "Mamba2Mixer(num_heads)": lambda: models.Mamba2Mixer(32, head_dim=16, num_heads=3, key=KEY),
    "MambaMixer(expand)": lambda: models.MambaMixer(16, expand=0.01, key=KEY),
    "S5Mixer(time steps)": lambda: models.S5Mixer(16, time_step_min=0.2, key=KEY),
    "HGRN2Mixer(lower_bound)": lambda: models.HGRN2Mixer(16, state_size=4, lower_bound="x", key=KEY),
    "RMSNorm": lambda: ssmkit.RMSNorm(4, groups="2"),
    "GatedRMSNorm": lambda: ssmkit.GatedRMSNorm(0),
    "LayerNorm": lambda: ssmkit.LayerNorm(4, eps="x"),
    "Shift": lambda: ssmkit.Shift(3),
    "RunningPhase": lambda: ssmkit.RunningPhase((3, 2.5)),
    "Stabiliser": lambda: ssmkit.Stabiliser("3"),
    "LanguageModel(width)": lambda: ssmkit.LanguageModel(4, 4.5, [], key=KEY),
    "LanguageModel(mixers)": lambda: ssmkit.LanguageModel(4, 4, [3], key=KEY),
    "LanguageModel(norm)": lambda: ssmkit.LanguageModel(4, 4, [], norm=3, key=KEY),
    "LanguageModel(key)": lambda: ssmkit.LanguageModel(4, 4, [], key=None),
    "LanguageModel(multiplier)": lambda: ssmkit.LanguageModel(4, 4, [], embedding_multiplier="x", key=KEY),
}
MESSAGES = [
    f"CheckpointError: {SOURCE}None.",
    "CheckpointError: `quantize` must be one of int8, bfloat16, got [].",
    "CheckpointError: `dtype` must name a dtype, got 3.",
    "CheckpointError: `strict` must be True or False, got 'no'.",
    f"CheckpointError: {SOURCE}3.",
    f"CheckpointError: {SOURCE}3.",
    "CheckpointError: `int` is of no known architecture. Write the model as a `ssmkit.LanguageModelConfig`, or add an "
    "architecture by an entry point of the group `ssmkit.architectures`.",
    "CheckpointError: `directory` must be a path, got None.",
    "CheckpointError: `tokenizer` must be a `Tokenizer`, got 'x'. Read one with `Tokenizer.from_file`.",
    "CheckpointError: `directory` must be a path, got 3.",
    "CheckpointError: `weights` must be a path, got 3.",
    f"ValueError: {NO_MODEL}int.",
    "ValueError: `directory` must be a path, got None.",
    "ValueError: `platforms` must be a list, got 'cpu'.",
    "ValueError: `lengths` must be integers of at least 1, got [1.5].",
    "ValueError: `beside` must be a path, got 3.",
    f"ValueError: {NO_MODEL}int.",
    "ValueError: `config` must be a `TrainConfig`, got {}. Read one with `TrainConfig.from_toml`.",
    "ValueError: the training text must be integer ids of shape (time,), got None.",
    "ValueError: the validation text must be integer ids of shape (time,), got float64 of shape (40,).",
    "ValueError: `directory` must be a path, got None.",
    "ValueError: `report` must be a function, got None.",
    "ValueError: `keep` must be a function, got 3.",
    "ValueError: `make_model` must be a function, got 7.",
    "ValueError: `config` must be a `TrainConfig`, got None. Read one with `TrainConfig.from_toml`.",
    "ValueError: `train` must be a path, got 3.",
    "ValueError: `out` must be a path, got None.",
    "ValueError: training configuration: `steps` must be an integer, at least 1, got '3'.",
    "ValueError: `path` must be a path, got 3.",
    "ValueError: Mamba2Config: `hidden_size` must be an integer, at least 1, got 'x'.",
    "ValueError: MambaConfig: `hidden_size` must be an integer, at least 1, got 2.5.",
    "ValueError: `in_features` must be at least 1, got 0.",
    "ValueError: `in_features` must be an integer, got '4'.",
    f"ValueError: {ONE_KEY}3.",
    f"ValueError: {ONE_KEY}array([[0, 0]], dtype=uint32).",
    "ValueError: `dtype` must be a floating-point dtype, got 'x'.",
    "ValueError: `use_bias` must be True or False, got 'x'.",
    "ValueError: `blocks` must be an integer, got '2'.",
    "ValueError: `rows` must be at least 1, got -1.",
    "ValueError: `kernel_size` must be an integer, got 2.5.",
    f"ValueError: `activation` must be one of {ACTIVATIONS}, or a function, got 3.",
    "ValueError: GLAMixer: `width` must be an integer, got '16'.",
    f"ValueError: `feature_map` must be one of {ACTIVATIONS}, or a function, got 'x'.",
    "ValueError: `num_heads` * `head_dim` must be `expand` * `width` = 64, got 3 * 16: choose another `head_dim`.",
    "ValueError: `expand` * `width` must be at least 1, got 0.01 * 16.",
    "ValueError: `time_step_min` must be above 0 and at most `time_step_max`, got 0.2 and 0.1.",
    "ValueError: `lower_bound` must be a number, or one for each channel, got 'x'.",
    "ValueError: `groups` must be an integer, got '2'.",
    "ValueError: `channels` must be at least 1, got 0.",
    "ValueError: `eps` must be a number, at least 0, got 'x'.",
    f"ValueError: {SHAPE}3.",
    f"ValueError: {SHAPE}(3, 2.5).",
    "ValueError: `heads` must be an integer, got '3'.",
    "ValueError: `width` must be an integer, got 4.5.",
    "TypeError: `mixers[0]` must be an `ssmkit.AbstractMixer`, got int.",
    "TypeError: `norm` must make a norm of a given width, such as `ssmkit.RMSNorm` itself; got 3.",
    f"ValueError: {ONE_KEY}None.",
    "ValueError: `embedding_multiplier` must be a number above 0, known when the model is made, got 'x'.",
]


def message(call):
    try:
        call()
    except Exception as error:  # whatever a mistake may raise
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def messages():
    return [message(call) for call in CALLS.values()]


@pytest.mark.parametrize(("name", "text"), [*zip(CALLS, MESSAGES, strict=True)], ids=list(CALLS))
def test_own_checks_speak_first(name, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got = message(CALLS[name])
    assert got == text
    assert not list(tmp_path.iterdir())  # and nothing was made


def test_the_type_checker_changes_nothing(tmp_path):
    code = "import json, test_own_checks; print(json.dumps(test_own_checks.messages()))"
    here = Path(__file__).parent
    environment = os.environ | {"SSMKIT_TYPECHECK": "0", "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == messages()
