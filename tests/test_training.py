"""Training: the loop, going on after a kill, precision, and from files to files."""

import csv
import dataclasses
import os

import equinox as eqx
import jax
import numpy as np
import pytest
from small_training import CONFIG, TEXT, Bigram, assert_same, dying, ignore, make_mamba2, model, uninterrupted  # noqa: F401

import ssmkit
from ssmkit.text._tokenizer import Tokenizer
from ssmkit.training import LossCurve, Progress, TrainConfig, fit, train_files
from ssmkit.training._layout import start
from ssmkit.training._optimizer import make_optimizer
from ssmkit.training._state import read_state, steps_in


# The loop


def test_loss_falls(model, tmp_path):  # noqa: F811
    reports = []
    before = jax.tree.map(np.asarray, eqx.filter(model, eqx.is_array))
    config = dataclasses.replace(CONFIG, steps=60, learning_rate=0.1, dropout=0.0, evaluate_every=60, log_every=10)
    trained = fit(model, config, TEXT, TEXT[:50], tmp_path, reports.append)
    assert [progress.step for progress in reports] == [10, 20, 30, 40, 50, 60]
    assert all(progress.tokens_per_second > 0 for progress in reports)
    assert [progress.valid_loss is None for progress in reports] == [True] * 5 + [False]
    assert reports[0].train_loss > 1.0 and reports[-1].train_loss < 0.5
    assert reports[-1].valid_loss == ssmkit.score(trained, TEXT[:50]).nats_per_token
    assert_same(before, eqx.filter(model, eqx.is_array))  # not consumed


@pytest.mark.parametrize("dies_at", [2, 4, 8])
def test_a_killed_run_continues_bit_for_bit(model, tmp_path, dies_at, uninterrupted):  # noqa: F811
    """Killed before the first state was kept, in between, and before the last one."""

    with dying(dies_at) as report:
        fit(model, CONFIG, TEXT, TEXT[:50], tmp_path, report)
    assert steps_in(tmp_path) == [step for step in (3, 6) if step < dies_at]
    steps = []
    resumed = fit(model, CONFIG, TEXT, TEXT[:50], tmp_path, lambda progress: steps.append(progress.step))
    assert steps == [step for step in (2, 4, 6, 8) if step > {2: 0, 4: 3, 8: 6}[dies_at]]
    assert_same(resumed, uninterrupted)
    assert steps_in(tmp_path) == [6, 8] and not list(tmp_path.glob("**/*tmp*"))

    def never(progress):
        raise AssertionError

    assert_same(fit(model, CONFIG, TEXT, TEXT[:50], tmp_path, never), uninterrupted)  # a finished run


def test_divergence_is_reported_and_not_kept(model, tmp_path):  # noqa: F811
    """The first step's learning rate is 0, the second's ruins the weights, which are finite but for the third's."""
    config = dataclasses.replace(CONFIG, learning_rate=1e38, warmup_steps=1, checkpoint_every=1, log_every=8)
    for _ in range(2):  # and once more, from what was kept
        with pytest.raises(FloatingPointError, match="diverged: no longer finite at step 3. Lower `learning_rate`"):
            fit(model, config, TEXT, TEXT[:50], tmp_path, ignore)
        assert steps_in(tmp_path) == [1, 2]
        like = start(eqx.filter(model, eqx.is_inexact_array), make_optimizer(config))
        kept = read_state(tmp_path / "states" / "2", like)
        assert int(kept.step) == 2
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.model))


def test_too_short_texts(model, tmp_path):  # noqa: F811
    for train, valid, problem in [
        (TEXT[:20], TEXT, "training text has 20"),
        (TEXT, TEXT[:1], "validation text must have at least 2 ids, got 1"),
    ]:
        with pytest.raises(ValueError, match=problem):
            fit(model, CONFIG, train, valid, tmp_path, ignore)


def test_ids_outside_the_vocabulary(model, tmp_path):  # noqa: F811
    """They would be looked up as other rows, or end as a loss that is not finite."""
    out = tmp_path / "out"
    for train, valid, problem in [
        (
            TEXT + 1,
            TEXT,
            r"the training text must have ids in \[0, 12\), got ids from 1 to 12\. Is this the model's tok",
        ),
        (TEXT, TEXT - 1, r"the validation text must have ids in \[0, 12\), got ids from -1 to 10"),
        (TEXT.astype(np.int64) + 2**32, TEXT, "the training text must have ids .* from 4294967296 to"),
    ]:
        with pytest.raises(ValueError, match=problem):
            fit(model, CONFIG, train, valid, out, ignore)
    assert not out.exists()


def test_a_class_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="got the class `Bigram` itself: build one with it."):
        fit(Bigram, CONFIG, TEXT, TEXT, tmp_path / "out", ignore)


# Precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_are_trained_in_float32(tmp_path, dtype):
    """20 steps at 1e-5 are less than half the distance of two bfloat16 numbers, added one by one."""
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), Bigram(12, 8))
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), narrow)
    config = dataclasses.replace(CONFIG, steps=20, learning_rate=1e-5, final_learning_rate=1e-5, warmup_steps=0)
    got = fit(narrow, config, TEXT, TEXT[:50], tmp_path / "narrow", ignore)
    expected = fit(wide, config, TEXT, TEXT[:50], tmp_path / "wide", ignore)
    assert_same(got, jax.tree.map(lambda leaf: leaf.astype(dtype), expected))
    moved = np.mean(np.asarray(got.embedding.weight) != np.asarray(narrow.embedding.weight))
    assert moved > 0.5
    assert_same(fit(narrow, config, TEXT, TEXT[:50], tmp_path / "narrow", ignore), got)  # from its state


def test_a_quantised_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="quantised to int8 and cannot be trained. Train the model that it was made"):
        fit(ssmkit.quantize(Bigram(12, 8), "int8"), CONFIG, TEXT, TEXT[:50], tmp_path / "out", ignore)
    assert not (tmp_path / "out").exists()


# From files to files


def test_train_files(tmp_path):
    train, valid, out = tmp_path / "train.txt", tmp_path / "valid.txt", tmp_path / "new" / "out"
    train.write_text("the cat sat on the mat. é 😀\n" * 20, encoding="utf-8")
    valid.write_text("the mat sat on the cat.\n", encoding="utf-8")
    reports = []
    config = dataclasses.replace(CONFIG, vocab_size=270)
    arguments = {"train": train, "valid": valid, "out": out, "report": reports.append}
    model = train_files(make_mamba2, config, **arguments)  # noqa: F811
    tokenizer = Tokenizer.from_file(out)
    assert tokenizer.vocab_size == model.vocab_size == 270
    loaded = ssmkit.from_pretrained(out)
    assert_same(loaded, model)
    assert reports[-1].valid_loss == ssmkit.score(loaded, tokenizer.encode(valid.read_text())).nats_per_token
    with open(out / "loss.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
    assert [bool(row["valid_nats_per_token"]) for row in rows] == [False, True, False, True]
    np.testing.assert_allclose(
        [float(row["train_nats_per_token"]) for row in rows], [r.train_loss for r in reports], atol=1e-5
    )
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    written = ["loss.csv", "loss.png", "run.json", "states", "tokenizer.json", "train.toml"]
    assert sorted(os.listdir(out)) == [".lock", "config.json", *written[:2], "model.safetensors", *written[2:]]
    assert TrainConfig.from_toml(out / "train.toml") == config

    reports.clear()
    assert_same(train_files(make_mamba2, config, **arguments), model)  # nothing left to do
    assert not reports


@pytest.mark.parametrize("train, valid", [(b"short", b"valid text"), (b"long " * 100, b""), (b"\xff", b"valid text")])
def test_bad_texts_leave_nothing_behind(tmp_path, train, valid):
    (tmp_path / "train.txt").write_bytes(train)
    (tmp_path / "valid.txt").write_bytes(valid)
    with pytest.raises(ValueError, match="text"):
        train_files(
            make_mamba2,
            CONFIG,
            train=tmp_path / "train.txt",
            valid=tmp_path / "valid.txt",
            out=tmp_path / "out",
            report=ignore,
        )
    assert not (tmp_path / "out").exists()


def test_loss_curve_of_a_resumed_run(tmp_path):
    """What the killed run reported after its last state is reported anew, and replaces the old rows."""
    first = LossCurve(tmp_path)
    for step in (1, 2, 3):
        first.append(Progress(step, 1.0, None, 10.0))
    second = LossCurve(tmp_path)
    second.append(Progress(2, 5.0, 6.0, 10.0))
    with open(tmp_path / "loss.csv", newline="") as file:
        assert [row[:3] for row in csv.reader(file)][1:] == [["1", "1.00000", ""], ["2", "5.00000", "6.00000"]]


@pytest.mark.parametrize(
    "content",
    [
        b"something,else\n",
        b"\xff\xfe",
        b"%s\n1,1.0\0,,1\n",
        b"%s\n1,x,,1\n",
        b"%s\n1,nan,,1\n",
        b"%s\n" + b"9" * 5000 + b",1.0,,1\n",
        b"%s\n1," + b"1" * 200_000 + b",,1\n",
        b'%s\n"1',
    ],
)
def test_a_damaged_loss_curve_is_named(tmp_path, content):
    header = b"step,train_nats_per_token,valid_nats_per_token,tokens_per_second"
    (tmp_path / "loss.csv").write_bytes(content.replace(b"%s", header))
    with pytest.raises(ValueError, match=r"loss\.csv is not the loss table of a training run \(.*\)\. Move it away"):
        LossCurve(tmp_path)
