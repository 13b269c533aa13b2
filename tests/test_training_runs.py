"""A run on disk: continued only as it was, by one process at a time, through damage, interrupts and a full disk."""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys

import equinox as eqx
import jax
import numpy as np
import pytest
from damage import full_disk
from small_training import (  # noqa: F401
    CONFIG,
    TEXT,
    Bigram,
    Killed,
    assert_same,
    contents,
    dying,
    ignore,
    make_mamba2,
    model,
    uninterrupted,
)

import ssmkit
from ssmkit.training import fit
from ssmkit.training._state import _check_sums as check_sums, steps_in


VALID = TEXT[:50]


@pytest.fixture
def interrupted(model, tmp_path):  # noqa: F811
    """A folder with the states of steps 3 and 6 of 8."""
    with dying(8) as report:
        fit(model, CONFIG, TEXT, VALID, tmp_path, report)
    assert steps_in(tmp_path) == [3, 6] and (tmp_path / "run.json").exists()
    return tmp_path


# Damage


def cut(content):
    return content[: len(content) // 2]


def flipped(content):
    """One bit of a weight."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGE = {
    "cut": cut,
    "empty": lambda content: b"",
    "short": lambda content: b"x" * 5,
    "longer": lambda content: content + b"x",
    "zeros": lambda content: bytes(len(content)),
    "flipped": flipped,
}


def files_of(state):
    """The files of a state, the largest first: it holds weights."""
    return sorted((path for path in state.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_passed_over(model, interrupted, uninterrupted, damage):  # noqa: F811
    path = files_of(interrupted / "states" / "6")[0]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    steps = []
    with pytest.warns(UserWarning, match="states/6 does not fit .* damaged .* goes on from .*states/3, of step 3"):
        resumed = fit(model, CONFIG, TEXT, VALID, interrupted, lambda progress: steps.append(progress.step))
    assert steps == [4, 6, 8]
    assert_same(resumed, uninterrupted)


def test_every_changed_byte_of_a_state_is_noticed(interrupted):
    """Orbax reads changed weights without a word. What stands beside the item says nothing that is used."""
    state = interrupted / "states" / "6"
    for path in files_of(state):
        if path.parent != state or path.name == "checksums.json":
            content = path.read_bytes()
            path.write_bytes(flipped(content) if content else b"x")
            with pytest.raises(ValueError, match="states/6 does not fit this configuration or is damaged"):
                check_sums(state)
            path.write_bytes(content)
    check_sums(state)


def test_killed_while_a_state_is_written(model, interrupted, uninterrupted):  # noqa: F811
    """The state is then not yet in its place."""
    os.rename(interrupted / "states" / "6", interrupted / "states" / "6.orbax-checkpoint-tmp")
    assert_same(fit(model, CONFIG, TEXT, VALID, interrupted, ignore), uninterrupted)
    assert sorted(os.listdir(interrupted / "states")) == ["6", "8"]


def test_two_damaged_states_are_one_error(model, interrupted):  # noqa: F811
    for step in ("3", "6"):
        path = files_of(interrupted / "states" / step)[0]
        path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(ValueError, match="states/6 .* checksum.*; .*states/3 .* Train into an empty") as caught:
        fit(model, CONFIG, TEXT, VALID, interrupted, ignore)
    assert "\n" not in str(caught.value)


def test_a_state_that_holds_a_pipe(model, interrupted, uninterrupted):  # noqa: F811
    os.mkfifo(interrupted / "states" / "6" / "default" / "pipe")
    (interrupted / "states" / "3" / "checksums.json").unlink()
    os.mkfifo(interrupted / "states" / "3" / "checksums.json")
    with pytest.raises(ValueError, match="states/6 .*Not a regular file.*states/3 .*Not a regular file"):
        fit(model, CONFIG, TEXT, VALID, interrupted, ignore)


def test_states_that_are_a_file(model, tmp_path):  # noqa: F811
    (tmp_path / "states").write_text("precious")
    with pytest.raises(ValueError, match=r"no run\.json beside it says what run it is of"):
        fit(model, CONFIG, TEXT, VALID, tmp_path, ignore)
    assert (tmp_path / "states").read_text() == "precious"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"x": ' + b"9" * 5000 + b"}"])
def test_a_damaged_record(model, interrupted, content):  # noqa: F811
    (interrupted / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match="run.json, which says what run the directory holds, is damaged"):
        fit(model, CONFIG, TEXT, VALID, interrupted, ignore)


def test_a_state_without_a_record(model, interrupted):  # noqa: F811
    (interrupted / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no run\.json beside it says what run it is of"):
        fit(model, CONFIG, TEXT, VALID, interrupted, ignore)


# Another run


def test_only_the_same_run_continues(model, interrupted, uninterrupted):  # noqa: F811
    before = contents(interrupted)
    other_text = TEXT.copy()
    other_text[7] = 3
    for problem, arguments in {
        "`seed`: 0 then, 1 now": {"seed": 1},
        "`batch_size`: 2 then, 3 now": {"batch_size": 3},
        "`context`: 16 then, 8 now": {"context": 8},
        "`steps`: 8 then, 9 now; `dropout`: 0.1 then, 0.2 now": {"steps": 9, "dropout": 0.2},
        "the training text: '240 tokens, .*' then, '240 tokens, .*' now": {"train": other_text},
        "the validation text: '50 tokens, .*' then, '49 tokens, .*' now": {"valid": VALID[:-1]},
        "the model's arrays: 'Bigram of .*' then, 'Bigram of .*' now": {"model": Bigram(12, 16)},
        "the model started from other values": {
            "model": eqx.tree_at(lambda m: m.embedding.weight, model, replace_fn=np.cos)
        },
        "`model.width`: None then, 8 now": {"model_table": {"width": 8}},
    }.items():
        arguments = {"model": model, "train": TEXT, "valid": VALID, "model_table": {}} | arguments
        table = arguments.pop("model_table")
        changes = {name: arguments.pop(name) for name in list(arguments) if hasattr(CONFIG, name) and name != "model"}
        config = dataclasses.replace(CONFIG, model=dict(CONFIG.model) | table, **changes)
        with pytest.raises(ValueError, match=f"holds a run that was made with something else: {problem}"):
            fit(config=config, directory=interrupted, report=ignore, **arguments)
    assert contents(interrupted) == before
    # How often it reports does not matter, nor does rounding in the initialisation.
    rounded = jax.tree.map(lambda leaf: leaf * np.float32(1 + 1e-6), model)
    config = dataclasses.replace(CONFIG, log_every=1, evaluate_every=2, checkpoint_every=8)
    assert_same(fit(rounded, config, TEXT, VALID, str(interrupted), ignore), uninterrupted)


def test_one_run_at_a_time(model, interrupted, uninterrupted):  # noqa: F811
    """The second of two processes is refused, and does no harm to the first."""
    script = (
        "import sys; from ssmkit.training._lock import occupied\n"
        "with occupied(sys.argv[1]): print('mine', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(interrupted)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(ValueError, match="is used by another run at this moment"):
            fit(model, CONFIG, TEXT, VALID, interrupted, ignore)
        other.kill()  # the system takes its lock back
    assert_same(fit(model, CONFIG, TEXT, VALID, interrupted, ignore), uninterrupted)


def test_two_threads(model, tmp_path):  # noqa: F811
    errors = []

    def second(progress):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            errors.append(pool.submit(fit, model, CONFIG, TEXT, VALID, tmp_path, ignore).exception())

    fit(model, dataclasses.replace(CONFIG, log_every=8, evaluate_every=8), TEXT, VALID, tmp_path, second)
    assert ["is used by another run" in str(error) for error in errors] == [True]


# Interrupts, and a full disk


def test_an_interrupt_keeps_the_last_step(model, tmp_path, uninterrupted):  # noqa: F811
    kept = []
    with dying(2, KeyboardInterrupt) as report:  # the first state would be kept after step 3
        fit(model, CONFIG, TEXT, VALID, tmp_path, report, kept.append)
    assert len(kept) == 1 and not np.array_equal(kept[0].head.weight, model.head.weight)
    steps = []
    assert_same(fit(model, CONFIG, TEXT, VALID, tmp_path, lambda progress: steps.append(progress.step)), uninterrupted)
    assert steps == [4, 6, 8]


def test_an_interrupt_while_a_state_is_written(model, interrupted, uninterrupted, monkeypatch):  # noqa: F811
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ssmkit.training._state._named", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(model, CONFIG, TEXT, VALID, interrupted, ignore)
    assert steps_in(interrupted) == [3, 6] and not list(interrupted.glob("**/*tmp*"))
    assert_same(fit(model, CONFIG, TEXT, VALID, interrupted, ignore), uninterrupted)


def test_a_full_disk_loses_nothing(model, interrupted, uninterrupted):  # noqa: F811
    before = contents(interrupted)
    with full_disk(200), pytest.raises(OSError) as caught:
        fit(model, CONFIG, TEXT, VALID, interrupted, ignore)
    assert caught.value.filename == str(interrupted / "states") and caught.value.strerror
    assert contents(interrupted) == before
    assert_same(fit(model, CONFIG, TEXT, VALID, interrupted, ignore), uninterrupted)


def test_the_record_is_what_people_can_read(interrupted):
    record = json.loads((interrupted / "run.json").read_text())
    assert record["ssmkit"] == ssmkit.__version__
    assert record["training"]["seed"] == 0 and record["the training text"].startswith("240 tokens, ")
