"""Training by several processes: as one, ended cleanly when one dies, and continued by another number of them."""

import csv
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from command_line import GEOMETRY, ROOT, TEXT

import ssmkit


pytestmark = pytest.mark.once
DEVICES = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "train.txt").write_text(TEXT * 40, encoding="utf-8")
    (folder / "valid.txt").write_text(TEXT, encoding="utf-8")
    model = "".join(f"{name} = {value}\n" for name, value in GEOMETRY.items())
    training = "steps = 12\nbatch_size = 4\ncontext = 8\nvocab_size = 260\nlog_every = 1\ncheckpoint_every = 2\n"
    (folder / "run.toml").write_text(f"[model]\n{model}[training]\n{training}fully_sharded = true\ndropout = 0.0\n")
    return folder


def free_port():
    with socket.socket() as own:
        own.bind(("localhost", 0))
        return own.getsockname()[1]


class Run:
    """The same command in several processes, which share the devices of one mesh."""

    def __init__(self, files, out, processes, *more):
        words = [sys.executable, "-m", "ssmkit", "train", "--out", out, "--config", files / "run.toml", *more]
        words += ["--train", files / "train.txt", "--valid", files / "valid.txt", "--mesh", f"data={DEVICES}"]
        words += ["--coordinator", f"localhost:{free_port()}", "--processes", processes, "--heartbeat", 5]
        settings = {"JAX_NUM_CPU_DEVICES": str(DEVICES // processes), "JAX_PLATFORMS": "cpu", "SSMKIT_TYPECHECK": "0"}
        settings["PYTHONPATH"] = str(ROOT)
        settings["SSMKIT_CACHE_DIR"] = str(files / f"cache-{processes}")
        self.out, self.processes = out, []
        for process in range(processes):
            own = [*words, "--process", process]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen([str(word) for word in own], env=os.environ | settings, **pipes))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait(self):
        """The exit code, standard output and standard error of every process, in order."""
        texts = [process.communicate(timeout=120) for process in self.processes]
        return [(process.returncode, *text) for process, text in zip(self.processes, texts, strict=True)]

    def kill_after(self, step, victim):
        """Kill a process when the table of losses has a row of a step."""
        while step not in steps_of(self.out):
            assert all(process.poll() is None for process in self.processes), self.wait()
            time.sleep(0.005)
        self.processes[victim].send_signal(signal.SIGKILL)


def steps_of(out):
    try:
        with open(out / "loss.csv", newline="") as file:
            return [int(row["step"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def losses(out):
    with open(out / "loss.csv", newline="") as file:
        return [(row["train_nats_per_token"], row["valid_nats_per_token"]) for row in csv.DictReader(file)]


def weights(out):
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(files):
    """The folder of a run by one process over the same mesh."""
    with Run(files, files / "alone", 1) as run:
        ((code, _, err),) = run.wait()
    assert code == 0, err
    return files / "alone"


def assert_as_alone(results, out, alone):
    for number, (code, stdout, err) in enumerate(results):
        assert code == 0, err
        assert re.fullmatch(r".*: [0-9.]+ bits per byte on .*\n", stdout) if number == 0 else stdout == "", stdout
    assert losses(out) == losses(alone) and weights(out) == weights(alone)
    assert isinstance(ssmkit.from_pretrained(out), ssmkit.models.Mamba2)


def test_two_processes_are_as_one(files, alone):
    with Run(files, files / "two", 2) as run:
        assert_as_alone(run.wait(), files / "two", alone)


@pytest.mark.slow
def test_four_processes_are_as_one(files, alone):
    with Run(files, files / "four", 4) as run:
        assert_as_alone(run.wait(), files / "four", alone)


def killed_and_resumed(files, out, alone, *, step, victim, processes, then):
    with Run(files, out, processes) as run:
        run.kill_after(step, victim)
        for number, (code, stdout, err) in enumerate(run.wait()):
            assert code == -9 if number == victim else code not in (0, None), (number, code, stdout, err)
            assert number == victim or "ended" in err or "another task died" in err, err
    with Run(files, out, then) as run:
        assert_as_alone(run.wait(), out, alone)


def test_a_death_ends_the_others_and_another_number_goes_on(files, alone):
    killed_and_resumed(files, files / "killed", alone, step=5, victim=1, processes=2, then=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_death_at_any_moment(files, alone, seed):
    chance = random.Random(seed)
    processes, then = chance.choice([2, 4]), chance.choice([1, 2, 4])
    place = {"step": chance.randrange(1, 12), "victim": chance.randrange(processes)}
    killed_and_resumed(files, files / f"killed-{seed}", alone, **place, processes=processes, then=then)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step(files):
    """Also if it comes before the first step of a run that goes on, which would otherwise miss it."""
    out, more = files / "stopped", ("--steps", 4000, "--batch-size", 8)
    with Run(files, out, 2, *more) as run:
        while 2 not in steps_of(out):
            time.sleep(0.005)
        run.processes[1].send_signal(signal.SIGTERM)
        results = run.wait()
    assert [code for code, _, _ in results] == [130, 130] and all("interrupted" in err for *_, err in results), results
    with Run(files, out, 2, *more) as run:
        while not handles_termination(run.processes[1]):
            time.sleep(0.001)
        run.processes[1].send_signal(signal.SIGTERM)
        results, stopped = run.wait(), max(steps_of(out))
    assert [code for code, _, _ in results] == [130, 130], results
    assert [path.name for path in sorted((out / "states").iterdir())][-1] == str(stopped) and stopped < 4000


def handles_termination(process):
    """Whether a process handles SIGTERM (Linux tells)."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signal.SIGTERM - 1) & 1)
