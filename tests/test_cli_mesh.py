"""`--mesh` on the command line: the texts and scores of one device, clear mistakes, and CPUs that count as several."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from command_line import ROOT
from exported_models import PROMPTS

import ssmkit


pytestmark = [pytest.mark.once, pytest.mark.usefixtures("quick_compilation")]

MESH = ("--mesh", "data=2,model=2")


def test_generate(run, checkpoint):
    words = ("generate", "To be", "-m", checkpoint, "-t", "0.5", "--seed", "3", "--max-new-tokens", "5", "-n", "2")
    code, alone, _ = run(*words)
    assert code == 0
    code, out, told = run(*words, *MESH)
    assert (code, out) == (0, alone) and "data=2,model=2" in told


def test_score(run, checkpoint, text_file):
    words = ("score", text_file, "-m", checkpoint, "--json")
    (code, alone, _), (same, out, _) = run(*words), run(*words, *MESH)
    assert code == same == 0
    alone, out = json.loads(alone), json.loads(out)
    assert out["tokens"] == alone["tokens"] and out["device"].endswith(", data=2,model=2")
    assert out["nats_per_token"] == pytest.approx(alone["nats_per_token"], abs=2e-6)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data", "--mesh must be like data=4,model=2, got 'data'"),
        ("data=2,data=2", "--mesh must be like data=4,model=2, got 'data=2,data=2'"),
        ("data=1.5", "--mesh must be like data=4,model=2, got 'data=1.5'"),
        ("", "--mesh must be like data=4,model=2, got ''"),
        ("rows=2", "`mesh` must have axes of data, model, sequence, got 'rows'"),
        ("data=0", "the axis `data` must have at least 1 device, got 0"),
        ("data=4,model=4", "takes 16 devices, got 8. On a CPU, `XLA_FLAGS=--xla_force_host_platform_device_count=16`"),
    ],
)
def test_mistakes(run, mesh, message):
    for words in (("generate", "To be"), ("score", __file__)):
        code, out, told = run(*words, "--mesh", mesh)
        assert (code, out) == (2, "") and told.startswith("error: ") and message in told


@pytest.mark.parametrize("flags, devices", [("", 3), ("--xla_force_host_platform_device_count=2", 2)])
def test_a_cpu_counts_as_several_devices(flags, devices):
    """It does unless the user gives a number, which stays."""
    code = "from ssmkit.cli._options import _let_cpu_count_as as ask; import jax; ask(3); print(jax.device_count())"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    del environment["JAX_NUM_CPU_DEVICES"]
    words = [sys.executable, "-c", code]
    assert int(subprocess.run(words, env=environment, capture_output=True, check=True).stdout) == devices


def test_an_artefact(artefact, exported_source):
    """The programs of an artefact, exported for one device, run over the mesh on which its weights are."""
    model = ssmkit.shard(
        ssmkit.load_exported(artefact), ssmkit.parallel.make_mesh(data=2, model=2, devices=jax.devices()[:4])
    )
    prompts = [*PROMPTS, [5, 6]]
    out, alone = (ssmkit.generate(one, prompts, 4) for one in (model, exported_source))
    np.testing.assert_array_equal(out.tokens, alone.tokens)
    assert out.tokens.sharding.spec[0] == "data" and ssmkit.parallel.mesh_of(out.rows) is not None
    ids = [1, 2, 3] * 6
    assert ssmkit.score(model, ids).nats == pytest.approx(ssmkit.score(exported_source, ids).nats, rel=1e-6)
