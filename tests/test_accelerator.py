"""The command for a borrowed accelerator: its arguments, its rehearsal on the CPU, the tables of its figures."""

import json
import os
import pathlib
import re
import subprocess
import tarfile
import tomllib

import pytest
from benchmark_runs import ROOT, as_users_run_it, invoke  # noqa: F401 a fixture
from packaging.requirements import Requirement

from ssmkit.benchmarks import _report_devices, _requirements, suite


pytestmark = pytest.mark.once

MEASURE, WHEELS = ROOT / "benchmarks" / "accelerator.sh", ROOT / "benchmarks" / "accelerator_wheels.sh"


def command(script, *words, **settings):
    words = ["bash", str(script), *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=dict(os.environ) | settings)


@pytest.mark.parametrize("script", [MEASURE, WHEELS])
def test_the_scripts_are_commands_that_explain_themselves(script):
    assert os.access(script, os.X_OK) and command("-n", script).returncode == 0
    done = command(script, "--help")
    assert done.returncode == 0 and f"benchmarks/{script.name} [" in done.stdout


@pytest.mark.parametrize(
    "script, words, message",
    [
        (MEASURE, ["--budget", "soon"], "--budget must be a number of seconds, got soon"),
        (MEASURE, ["--budget", "0"], "--budget must be a number of seconds, got 0"),
        (MEASURE, ["--budget"], "--budget needs a value"),
        (MEASURE, ["--steps", "130m,7b"], "no step is called 7b; there are suite 130m"),
        (MEASURE, ["--fast"], "there is no option --fast"),
        (MEASURE, ["a", "b"], "one folder takes all results, got a and b"),
        (MEASURE, ["--python", "/no/python"], "there is no /no/python"),
        (MEASURE, ["--archive", "/no/folder/all.tar.gz"], "--archive: there is no folder /no/folder"),
        (WHEELS, ["--jax"], "--jax needs a version"),
        (WHEELS, ["--python", "new"], "--python must be a version such as 3.12, got new"),
        (WHEELS, ["a", "b"], "one folder takes all wheels, got a and b"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_runs(script, words, message, tmp_path):
    done = command(script, *words, TMPDIR=str(tmp_path))
    assert done.returncode == 2 and message in done.stderr and not done.stdout
    assert not list(tmp_path.iterdir())


def test_requirements_are_those_of_the_project_and_of_its_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    expected = {*project["dependencies"], *extras["train"], *extras["sentencepiece"], *extras["test"][:-1]}
    assert extras["test"][-1] == "ssmkit[sentencepiece,train]"
    assert set(_requirements.requirements()) == expected
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", text) and Requirement(text) for text in expected)
    assert not _requirements._met("no-such-package>=1") and not _requirements._met("numpy>=999.0")
    assert _requirements.lacking() == []


def test_the_suite_names_files_that_exist_and_tells_what_fails(tmp_path, monkeypatch):
    assert all((ROOT / "tests" / f"{name}.py").is_file() for name in suite.FILES)
    code, _, error = invoke("suite", "--tests", "test_nothing")
    assert code != 0 and "no tests are called test_nothing" in str(error)
    tests = tmp_path / "tests"
    tests.mkdir()
    lines = ["import pytest", "def test_a(): pass", "def test_b(): assert 1 == 2", "def test_c(): pytest.skip('why')"]
    (tests / "test_some.py").write_text("\n".join(lines))
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.setattr(suite, "_ROOT", tmp_path)
    code, shown, error = invoke("suite", "--tests", "test_some", "-o", tmp_path / "suite.json")
    assert code == 0, error
    content = json.loads((tmp_path / "suite.json").read_text())
    (row,) = content["rows"]
    assert (row["file"], row["passed"], row["failed"], row["skipped"]) == ("test_some", 1, 1, 1)
    assert content["skips"] == ["why"] and "left" not in content
    assert "`tests/test_some.py::test_b`: assert 1 == 2" in shown


def result(kind, command, geometry, rows, peaks):
    place = {"platform": "gpu", "kind": kind}
    content = {"command": command, "geometry": geometry, "device": place, "environment": {"jax": "0.11.2"}}
    return content | {"ceilings": {"1": peaks}, "rows": [{"label": "ssmkit"} | row for row in rows]}


def test_a_device_has_one_table_over_all_geometries():
    peaks = {"sheet_matvec": 3.352e12, "sheet_matmul": 989e12}
    decode = [
        {"batch": 1, "tokens_per_s": 1000.0, "hbu_of_data_sheet": 0.5},
        {"batch": 64, "tokens_per_s": 50000.0, "hbu_of_data_sheet": None},
    ]
    found = [
        result("GPU", "decode", "2.7b", decode[:1], peaks),
        result("GPU", "decode", "130m", decode, peaks),
        result("GPU", "prefill", "130m", [{"length": 512, "tokens_per_s": 9e5, "mfu_of_data_sheet": 0.25}], peaks),
        result("Other", "prefill", "130m", [{"length": 512, "tokens_per_s": 9.0}], {}),
        result("GPU", "context", "130m", [], peaks),
    ]
    first, second = _report_devices.summaries(found)
    assert first.startswith("### GPU, jax 0.11.2") and "published 3,352 GB/s (decoding) and 989 TFLOP/s" in first
    assert first.splitlines()[4:] == [
        "| geometry |  | decoding, 1 | decoding, 64 | prompt of 512 |",
        "|---|---|--:|--:|--:|",
        "| 130m | ssmkit | 1,000 (50%) | 50,000 | 900,000 (25%) |",
        "| 2.7b | ssmkit | 1,000 (50%) |  |  |",
    ]
    assert "published" not in second and "| 130m | ssmkit | 9 |" in second
    place = {"platform": "cpu", "kind": "cpu"}
    assert list(_report_devices.summaries([found[0] | {"device": place}])) == []


def test_a_time_that_is_over_is_said(tmp_path):
    """Nothing of two seconds is left for a step once the device is known."""
    done = command(MEASURE, "--rehearse", "--budget", 2, "--steps", "train,trace", tmp_path)
    assert done.returncode == 1, done.stderr
    assert "train: skipped, no time is left" in done.stdout and "trace: skipped, no time is left" in done.stdout


@pytest.mark.slow
def test_a_rehearsal_takes_every_path(tmp_path):
    """On the CPU, with a stand-in for mamba_ssm, whose tokens and logits are checked as everywhere."""
    folder, archive = tmp_path / "results", tmp_path / "all.tar.gz"
    done = command(MEASURE, "--rehearse", "--archive", archive, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.name.split("_")[0]: path for path in folder.glob("*.json")}
    assert set(found) == {"suite", "decode", "prefill", "context", "train", "trace"}
    for name in ("decode", "prefill"):
        rows = json.loads(found[name].read_text())["rows"]
        assert {row["subject"] for row in rows} == {"ssmkit-bfloat16", "mamba_ssm"}
    suite_result = json.loads(found["suite"].read_text())
    assert suite_result["failures"] == [] and sum(row["passed"] for row in suite_result["rows"]) > 0
    assert (folder / found["trace"].name).with_suffix(".zip").is_file()
    tables = (folder / "logs" / "tables.md").read_text()
    assert "### Where the time goes" in tables and "mamba_ssm" in tables
    with tarfile.open(archive) as packed:
        names = {pathlib.Path(name).name for name in packed.getnames()}
    assert {path.name for path in found.values()} | {"tables.md"} <= names
