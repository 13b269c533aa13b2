"""Training: the data, the optimiser, the loop, and going on after a kill."""

import csv
import dataclasses
import os

import equinox as eqx
import jax
import numpy as np
import pytest

import ssmkit
from ssmkit.models import Mamba2, Mamba2Config
from ssmkit.text._tokenizer import Tokenizer
from ssmkit.training import LossCurve, Progress, TrainConfig, TrainState, Windows, fit, make_optimizer, train_files
from ssmkit.training._state import load_state


MODEL = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4, "head_dim": 4, "chunk_size": 16}
CONFIG = TrainConfig(
    MODEL,
    vocab_size=256,
    steps=8,
    batch_size=2,
    context=16,
    learning_rate=1e-2,
    warmup_steps=2,
    evaluate_every=4,
    checkpoint_every=3,
    log_every=2,
)
TEXT = np.tile(np.arange(12, dtype=np.int32), 20)


class Bigram(ssmkit.AbstractLanguageModel[None]):
    """Sees one token back: enough to train, and compiled in a moment."""

    vocab_size: int = eqx.field(static=True)
    embedding: ssmkit.Embedding
    head: ssmkit.Linear

    def __init__(self, vocab_size, width):
        self.vocab_size = vocab_size
        self.embedding = ssmkit.Embedding(vocab_size, width, key=jax.random.key(0))
        self.head = ssmkit.Linear(width, vocab_size, use_bias=True, key=jax.random.key(1))

    def init_cache(self):
        return None

    def prefill(self, tokens, cache, *, length=None):
        raise NotImplementedError

    def step(self, token, cache, *, valid=None):
        raise NotImplementedError

    def forward(self, tokens, cache, *, dropout=0.0, key=None):
        x = eqx.nn.Dropout(dropout, inference=dropout == 0.0)(self.embedding(tokens), key=key)
        return self.head(x), cache


def ignore(progress):
    pass


def make_mamba2(config, vocab_size):
    return Mamba2(Mamba2Config(vocab_size=vocab_size, **config.model), key=jax.random.key(config.seed))


@pytest.fixture(scope="module")
def model():
    return Bigram(12, 8)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


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
        ("steps = 3", r"unknown table or key steps \(known: \[model\], \[training\]\)"),
        ("[training]\nstep = 3", r"unknown key training.step \(known: batch_size"),
        ("model = 3", r"\[model\] must be a table"),
        ("[training]\nsteps = '3'", "training.steps must be a whole number, got '3'"),
        ("[training]\nsteps = true", "training.steps must be a whole number"),
        ("[training]\nsteps = 3.0", "training.steps must be a whole number"),
        ("[training]\ndropout = []", "training.dropout must be a number"),
        ("[training]\nsteps = 0\ncontext = 0", "`steps` must be at least 1, got 0; `context` must be at least 1"),
        ("[training]\nlearning_rate = nan", "`learning_rate` must be a finite number above 0, got"),
        ("[training]\nlearning_rate = inf", "`learning_rate` must be a finite number above 0, got"),
        ("[training]\nlearning_rate = 1" + "0" * 400, "`learning_rate` must be a finite number above 0, got"),
        ("[training]\nweight_decay = inf", "`weight_decay` must be finite and at least 0"),
        ("[training]\nbeta1 = -0.1\nbeta2 = nan", r"`beta1` must be in \[0, 1\), got -0.1; `beta2` must be in"),
        (f"[training]\nseed = {2**70}", r"`seed` must be below 2\*\*32"),
        (f"[training]\nseed = {2**32}", r"`seed` must be below 2\*\*32"),  # JAX would take it for 0
        (f"[training]\nvocab_size = {2**70}", r"`vocab_size` must be at most 2\*\*20"),
        ("[training]\nvocab_size = 1000000000", r"`vocab_size` must be at most 2\*\*20"),
        (f"[training]\nsteps = {2**31}", r"`steps` must be below 2\*\*31"),
        ("[training]\nsteps = '3'\ncontext = 0", "steps must be a whole number, got '3'; `context` must be at least 1"),
        ("[training]\nsteps = " + "9" * 5000, "is not valid TOML"),
        ("x = " + "[" * 100_000, "is not valid TOML"),
        ("x = '\x00'", "is not valid TOML"),
        ("[training]\ndropout = 1.0", r"`dropout` must be in \[0, 1\)"),
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
    with pytest.raises(ValueError, match=r"`steps` must be at least 1, got 0; \[model\]: it is too large\.$"):
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


# The loop


def test_loss_falls(model, tmp_path):
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


class Killed(Exception):
    pass


@pytest.mark.parametrize("dies_at", [2, 4, 8])
def test_a_killed_run_continues_bit_for_bit(model, tmp_path, dies_at, uninterrupted):
    """Killed before the first state was kept, in between, and before the last one."""

    def die(progress):
        if progress.step == dies_at:
            raise Killed

    with pytest.raises(Killed):
        fit(model, CONFIG, TEXT, TEXT[:50], tmp_path, die)
    assert (tmp_path / "state.eqx").exists() == (dies_at > 2)
    steps = []
    resumed = fit(model, CONFIG, TEXT, TEXT[:50], tmp_path, lambda progress: steps.append(progress.step))
    assert steps == [step for step in (2, 4, 6, 8) if step > {2: 0, 4: 3, 8: 6}[dies_at]]
    assert_same(resumed, uninterrupted)
    assert not list(tmp_path.glob("*.partial"))

    def never(progress):
        raise AssertionError

    assert_same(fit(model, CONFIG, TEXT, TEXT[:50], tmp_path, never), uninterrupted)  # a finished run


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):
    return fit(model, CONFIG, TEXT, TEXT[:50], tmp_path_factory.mktemp("whole"), ignore)


def test_divergence_is_reported_and_not_kept(model, tmp_path):
    """The first step's learning rate is 0, the second's ruins the weights, which are finite but for the third's."""
    config = dataclasses.replace(CONFIG, learning_rate=1e38, warmup_steps=1, checkpoint_every=1, log_every=8)
    for _ in range(2):  # and once more, from what was kept
        with pytest.raises(FloatingPointError, match="diverged: no longer finite at step 3. Lower `learning_rate`"):
            fit(model, config, TEXT, TEXT[:50], tmp_path, ignore)
        params = eqx.filter(model, eqx.is_inexact_array)
        zero = jax.numpy.zeros((), jax.numpy.int32)
        kept = load_state(tmp_path, TrainState(params, make_optimizer(config).init(params), zero))
        assert int(kept.step) == 2
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.model))


def test_too_short_texts(model, tmp_path):
    for train, valid, problem in [(TEXT[:20], TEXT, "training text has 20"), (TEXT, TEXT[:1], "validation text has 1")]:
        with pytest.raises(ValueError, match=problem):
            fit(model, CONFIG, train, valid, tmp_path, ignore)


def test_ids_outside_the_vocabulary(model, tmp_path):
    """They would be looked up as other rows, or end as a loss that is not finite."""
    out = tmp_path / "out"
    for train, valid, problem in [
        (TEXT + 1, TEXT, r"the training text must hold ids in \[0, 12\), the model's vocabulary, got ids from 1 to 12"),
        (TEXT, TEXT - 1, r"the validation text must hold ids in \[0, 12\), .* got ids from -1 to 10"),
        (TEXT.astype(np.int64) + 2**32, TEXT, "the training text must hold ids .* from 4294967296 to"),
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
    model = train_files(make_mamba2, config, **arguments)
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
    written = ["loss.csv", "loss.png", "run.json", "state.eqx", "state.previous.eqx", "tokenizer.json", "train.toml"]
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
