"""A run's folder: what it takes, what it keeps, and what it never writes over."""

import dataclasses
import os

import pytest
from small_training import CONFIG, Bigram, Killed, contents, dying, ignore, make_mamba2

import ssmkit
from ssmkit.text._tokenizer import Tokenizer
from ssmkit.training import train_files


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "train.txt").write_text("the cat sat on the mat\n" * 20)
    (tmp_path / "valid.txt").write_text("the mat sat on the cat\n")
    return {"train": tmp_path / "train.txt", "valid": str(tmp_path / "valid.txt"), "out": tmp_path / "out"}


def test_a_killed_run_leaves_a_model_and_takes_no_other_text(texts, tmp_path):
    with dying(4) as report:
        train_files(make_mamba2, CONFIG, **texts, report=report)
    assert isinstance(ssmkit.from_pretrained(texts["out"]), ssmkit.models.Mamba2)
    (tmp_path / "train.txt").write_text("something else entirely\n" * 20)
    before = contents(texts["out"])
    with pytest.raises(ValueError, match=r"the training text: .* \(its configuration: .*train\.toml\)"):
        train_files(make_mamba2, CONFIG, **texts, report=ignore)
    assert contents(texts["out"]) == before


def test_a_tokenizer_is_never_another_text_s(texts, tmp_path, monkeypatch):
    """Killed as soon as anything was written."""

    def die(*arguments):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Tokenizer, "save", die)
        train_files(make_mamba2, CONFIG, **texts, report=ignore)
    (tmp_path / "train.txt").write_text("something else entirely\n" * 20)
    with pytest.raises(ValueError, match="the training text: "):
        train_files(make_mamba2, CONFIG, **texts, report=ignore)


def test_a_model_that_cannot_be_saved_is_not_trained(texts):
    problem = "this model cannot be saved, so it is not trained: `Bigram` is of no known arch.* `ssmkit.training.fit`"
    with pytest.raises(ValueError, match=problem):
        train_files(lambda config, size: Bigram(size, 8), CONFIG, **texts, report=pytest.fail)
    assert not texts["out"].exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_new_run_overwrites_no_model(texts, name):
    texts["out"].mkdir()
    (texts["out"] / name).write_text("precious")
    with pytest.raises(ValueError, match=f"holds a model \\({name}\\) that no run made there"):
        train_files(make_mamba2, CONFIG, **texts, report=ignore)
    assert (texts["out"] / name).read_text() == "precious"


def test_a_new_run_overwrites_no_configuration(texts):
    texts["out"].mkdir()
    (texts["out"] / "train.toml").write_text("# precious\n[training]\nsteps = 5\n")
    with pytest.raises(ValueError, match="is another configuration than this run's"):
        train_files(make_mamba2, CONFIG, **texts, report=ignore)


def test_a_run_takes_the_configuration_that_its_folder_holds(texts):
    """Also where a tuple was written as a list, and where the table leaves keys to their defaults."""
    config = dataclasses.replace(CONFIG, model={**CONFIG.model, "time_step_limit": (0.0, float("inf"))})
    texts["out"].mkdir()
    full = config.to_toml()
    for kept in (full, full.replace("time_step_limit = [0.0, inf]\n", "")):
        (texts["out"] / "train.toml").write_text(kept)
        with pytest.raises(Killed):
            train_files(raising, config, **texts, report=ignore, complete_model=lambda table: {**config.model, **table})


def raising(config, vocab_size):
    """A `make_model` that is called once the folder was found to be free."""
    raise Killed


@pytest.mark.parametrize("name", ["train", "valid"])
def test_texts_that_are_no_files(texts, tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    for path, problem in [("pipe", "Not a regular file"), (".", "Is a directory"), ("missing", "No such file")]:
        with pytest.raises(OSError, match=problem) as caught:
            train_files(make_mamba2, CONFIG, **(texts | {name: tmp_path / path}), report=ignore)
        assert caught.value.filename == str(tmp_path / path)
    assert not texts["out"].exists()
