"""What training is told and given: configurations, windows of a text, the optimiser's mask."""

import dataclasses
import os

import equinox as eqx
import jax
import numpy as np
import pytest
from small_training import MODEL

import ssmkit
from ssmkit.models import Mamba2, Mamba2Config
from ssmkit.training import TrainConfig, Windows


# Configuration


def test_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[model]\nhidden_size = 8\n[training]\nsteps = 5\nlearning_rate = 1\n")
    config = TrainConfig.from_toml(path)
    assert config == TrainConfig({"hidden_size": 8}, steps=5, learning_rate=1.0)
    assert type(config.learning_rate) is float


@pytest.mark.parametrize(
    "content, problem",
    [
        ("[", "is not valid TOML"),
        ("steps = 3", r"`steps` is unknown \(known: model, training\)"),
        ("[training]\nstep = 3", r"`training.step` is unknown \(known: vocab_size, steps, "),
        ("model = 3", "`model` must be a table of keys and values, got 3"),
        ("[training]\nsteps = '3'", "`training.steps` must be an integer, at least 1, got '3'"),
        ("[training]\nsteps = true", "`training.steps` must be an integer"),
        ("[training]\nsteps = 3.0", "`training.steps` must be an integer"),
        ("[training]\ndropout = []", r"`training.dropout` must be a number in \[0, 1\), got \[\]"),
        ("[training]\nsteps = 0\ncontext = 0", r"`training.steps` must .*, got 0; `training.context` must .*, got 0"),
        ("[training]\nlearning_rate = nan", "`training.learning_rate` must be a finite number above 0, got"),
        ("[training]\nlearning_rate = inf", "`training.learning_rate` must be a finite number above 0, got"),
        ("[training]\nlearning_rate = 1" + "0" * 400, "`training.learning_rate` must be a finite number above 0, got"),
        ("[training]\nweight_decay = inf", "`training.weight_decay` must be a finite number of at least 0"),
        (
            "[training]\nbeta1 = -0.1\nbeta2 = nan",
            r"beta1` must be a number in \[0, 1\), got -0.1; `training.beta2` must be",
        ),
        (f"[training]\nseed = {2**70}", "`training.seed` must be an integer, at most 4294967295, got"),
        (
            f"[training]\nseed = {2**32}",
            "`training.seed` must be an integer, at most 4294967295, got",
        ),  # JAX would take it for 0
        (f"[training]\nvocab_size = {2**70}", "`training.vocab_size` must be an integer, at most 1048576, got"),
        ("[training]\nvocab_size = 1000000000", "`training.vocab_size` must be an integer, at most 1048576, got"),
        (f"[training]\nsteps = {2**31}", "`training.steps` must be an integer, at most 2147483647, got"),
        ("[training]\nsteps = '3'\ncontext = 0", "`training.steps` must be .*, got '3'; `training.context` must be"),
        ("[training]\nsteps = " + "9" * 5000, "is not valid TOML"),
        ("x = " + "[" * 100_000, "is not valid TOML"),
        ("x = '\x00'", "is not valid TOML"),
        ("[training]\ndropout = 1.0", r"`training.dropout` must be a number in \[0, 1\)"),
    ],
)
def test_bad_toml(tmp_path, content, problem):
    path = tmp_path / "run.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=problem):
        TrainConfig.from_toml(path)


def test_toml_is_written_as_it_is_read(tmp_path):
    table = {"name": 'a "b"\n\x7f\\ é', "pair": (0.0, float("inf")), "flag": True, "small": 1e-05, "a key": {"x": [1]}}
    config = TrainConfig(table, seed=7, learning_rate=1e-5)
    (tmp_path / "run.toml").write_text(config.to_toml(), "utf-8")
    assert TrainConfig.from_toml(tmp_path / "run.toml") == dataclasses.replace(
        config, model=table | {"pair": [0.0, float("inf")]}
    )
    with pytest.raises(ValueError, match="TOML cannot express .* of type object"):
        TrainConfig({"x": object()}).to_toml()


def test_problems_of_the_model_are_told_with_the_others(tmp_path):
    def refuse(table):
        raise ValueError("[model]: it is too large.")

    (tmp_path / "run.toml").write_text("[training]\nsteps = 0\n")
    with pytest.raises(ValueError, match=r"`training.steps` must be .*, got 0; \[model\]: it is too large\.$"):
        TrainConfig.from_toml(tmp_path / "run.toml", refuse)


def test_a_configuration_file_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "run.toml")
    with pytest.raises(OSError, match="Not a regular file"):
        TrainConfig.from_toml(tmp_path / "run.toml")


# Data


def test_windows_cover_the_text():
    """One epoch: windows side by side, each once, from a phase on; the batches of a step never change."""
    text = np.arange(1000, dtype=np.int32)
    windows = Windows(text, batch_size=4, context=10, seed=3)
    assert windows.batches_per_epoch == 24
    phases, orders = set(), set()
    for epoch in range(3):
        batches = [windows.batch(epoch * 24 + index) for index in range(24)]
        rows = np.concatenate(batches)
        assert rows.shape == (96, 11)
        np.testing.assert_array_equal(rows - rows[:, :1], np.broadcast_to(np.arange(11), (96, 11)))  # neighbours
        starts = np.sort(rows[:, 0])
        assert 0 <= starts[0] < 10 and (np.diff(starts) == 10).all()
        phases.add(int(starts[0]))
        orders.add(tuple(rows[:, 0] - starts[0]))
        again = Windows(text, batch_size=4, context=10, seed=3)
        np.testing.assert_array_equal(again.batch(epoch * 24 + 5), batches[5])
    assert len(phases) > 1 and len(orders) == 3


def test_windows_reach_the_end():
    """The shortest text that makes a batch, at every phase."""
    text = np.arange(31, dtype=np.int32)
    windows = Windows(text, batch_size=2, context=10, seed=0)
    assert {int(windows.batch(step).max()) for step in range(100)} == set(range(20, 30))
    with pytest.raises(ValueError, match="30 tokens, too few .* at least 31 are needed"):
        Windows(text[:-1], batch_size=2, context=10, seed=0)


# Optimiser


def test_matrix_mask():
    """Exactly the weights of projections and embeddings, whatever they are called."""
    everything = Mamba2(
        Mamba2Config(vocab_size=12, **MODEL, use_bias=True, tie_word_embeddings=False), key=jax.random.key(0)
    )
    params = eqx.filter(everything, eqx.is_inexact_array)
    mask = ssmkit.matrix_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    decayed = {jax.tree_util.keystr(path) for path, wanted in jax.tree_util.tree_flatten_with_path(mask)[0] if wanted}
    mixer = ".blocks[0].mixer"
    assert decayed == {".embedding.weight", f"{mixer}.in_proj.weight", f"{mixer}.out_proj.weight", ".head.weight"}
