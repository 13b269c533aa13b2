"""The hosted workflow runs the script that developers run, and pre-commit the tools that the script runs."""

import os
import pathlib
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement


pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_workflow_runs_the_script_on_pushes_and_pull_requests():
    workflow = read(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML reads `on` as true
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] <= 60
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_workflow_sets_up_the_pythons_that_the_script_looks_for():
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    (setup,) = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    versions = setup["with"]["python-version"].split()
    pattern = re.search(r"grep -x '(python3\S+)'", (ROOT / ".ci" / "run").read_text())[1]
    assert all(re.fullmatch(pattern, f"python{version}") for version in versions)
    assert PROJECT["requires-python"] == f">={versions[-1]}"  # the last one is the default
    assert len(set(versions)) == len(versions) >= 3


def test_pre_commit_pins_tools_that_the_project_allows():
    hooks = {hook["id"]: repo for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    assert {"ruff-check", "ruff-format", "pyright", "check-toml", "check-yaml", "end-of-file-fixer"} <= set(hooks)
    lint = {Requirement(text).name: Requirement(text) for text in PROJECT["optional-dependencies"]["lint"]}
    assert lint["ruff"].specifier.contains(hooks["ruff-check"]["rev"].removeprefix("v"))
    assert hooks["pyright"]["repo"] == "local" and "pyright" in lint
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", repo["rev"]) for repo in hooks.values() if repo["repo"] != "local")
