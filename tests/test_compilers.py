"""What the compilers of TPU and GPU make of every kernel family's programs, without a device.

These tests run where the compilers are: `pip install '.[test,aot-tpu,aot-cuda]'` and `pytest -n auto -m compilers`.
"""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import ssmkit
from ssmkit.compilation import abstract_model
from ssmkit.models import Mamba2Config, MambaConfig


pytestmark = pytest.mark.compilers
os.environ.setdefault("LIBTPU_INIT_ARGS", "--xla_jf_dump_llo_text=false")  # writing schedules takes as long as all else

GLA = ssmkit.LanguageModelConfig(vocab_size=512, hidden_size=256, layers=[{"mixer": "gla", "num_heads": 2}] * 2)
MAMBA = MambaConfig(vocab_size=512, hidden_size=256, num_hidden_layers=2)
SMALL = Mamba2Config(vocab_size=512, hidden_size=256, num_hidden_layers=2, tie_word_embeddings=True)
MODELS = {"embedded (K1)": ssmkit.default_model_path(), "GLA (K2)": GLA, "Mamba (K3)": MAMBA}
LAYERS = {"embedded (K1)": 5, "GLA (K2)": 2, "Mamba (K3)": 2}
TARGETS = ["v5e", "v6e", "h100"]
PROGRAMS = ["step", "prefill", "generate", "train"]

# What compilers call outside HLO: functions of their own that stay on the chip. A TPU holds the 64-bit counters of
# random numbers, for dropout, as two halves.
OWN = {
    "tpu": {
        *("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "GatherScatterIndicesBitpacked"),
        *("X64Combine", "X64SplitHigh", "X64SplitLow"),
    },
    "cuda": set(),
}
# The most kernels of an H100 and operations of a TPU v6e, in a step and in a prompt of 512 tokens.
MOST = {
    ("embedded (K1)", "step"): (49, 200),
    ("embedded (K1)", "prefill"): (101, 437),
    ("GLA (K2)", "step"): (18, 76),
    ("GLA (K2)", "prefill"): (76, 358),
    ("Mamba (K3)", "step"): (20, 71),
    ("Mamba (K3)", "prefill"): (58, 228),
}


@functools.cache
def compiled(name: str, target: str, program: str) -> ssmkit.Compilation:
    length = 128 if program == "train" else 512
    dtype = jnp.float32 if program == "train" else jnp.bfloat16
    model = abstract_model(MODELS[name], dtype)
    return ssmkit.compile_for(model, target, program, length=length, max_new_tokens=32)


def every(*programs):
    """Training steps for TPU take minutes to compile: they run by hand, with `pytest -m compilers`."""
    cases = [(model, target, program) for target in TARGETS for model in MODELS for program in programs]
    slow = lambda target, program: [pytest.mark.slow] if program == "train" and target != "h100" else []
    cases = [pytest.param(*case, marks=slow(*case[1:])) for case in cases]
    return pytest.mark.parametrize(("name", "target", "program"), cases)


def platform(target):
    return "cuda" if target == "h100" else "tpu"


@every(*PROGRAMS)
def test_a_program_compiles_and_stays_on_the_device(name, target, program):
    found = compiled(name, target, program)
    assert found.memory.total < found.memory.device and found.layers == LAYERS[name]
    assert found.state_aliased == found.state_bytes > 0
    assert found.host_transfers == ()
    assert found.custom_calls.keys() <= OWN[platform(target)]
    assert not any(part.collectives for part in found.parts)


def least_state(name):
    """The bytes of the smallest state of a recurrence; the window of a convolution is smaller."""
    model = abstract_model(MODELS[name], jnp.bfloat16)
    cache = jax.eval_shape(lambda: model.init_cache())
    return min(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(cache) if leaf.ndim == 3)


@every("generate")
def test_no_state_or_weight_is_copied_at_every_token(name, target, program):
    found = compiled(name, target, program)
    decoding = found.parts[-1]
    assert decoding.name == "loop 1" and decoding.trips is None
    assert [copy for copy in decoding.copies if copy.nbytes >= least_state(name)] == []


@every("step", "prefill", "generate")
def test_only_the_decode_loop_is_decided_as_the_program_runs(name, target, program):
    """On a GPU it is also the only loop of the host, which reads one truth value per token; its body is one graph."""
    found = compiled(name, target, program)
    assert [part.name for part in found.parts if part.trips is None] == ["loop 1"] * (program == "generate")
    if target == "h100":
        assert [part.launches for part in found.parts if part.name != "program"] == [1] * (program == "generate")


@every("step", "prefill")
def test_kernels_do_not_become_more(name, target, program):
    found = compiled(name, target, program)
    kernels, operations = MOST[name, program]
    if target == "h100":
        assert sum(part.kernels for part in found.parts) <= kernels
    if target == "v6e":
        assert sum(part.operations for part in found.parts) <= operations


@pytest.mark.parametrize("target", ["v6e:2x2", "h100:4"])
def test_a_prompt_over_the_sequence_is_exchanged_by_sums_of_states(target):
    """One sum for each recurrence and one for each window; what is exchanged does not grow with the prompt."""
    config = dataclasses.replace(SMALL, num_hidden_layers=3)
    model = abstract_model(config, jnp.bfloat16, scan_layers=True)
    short, long = (ssmkit.compile_for(model, target, "prefill", length=n, mesh={"sequence": 4}) for n in (2048, 4096))
    assert short.collectives == long.collectives and short.state_aliased == short.state_bytes
    assert short.collectives.keys() <= {"all-reduce", "all-gather", "collective-permute"}
    state, window, last = 8 * 128 * 64 * 4, 3 * (512 + 256) * 4, 256 * 4
    layer = 4 * (state + 8 * 4 + window + 16)  # every device's map, with a decay for each head, and some counts
    assert sum(each.nbytes for each in short.collectives.values()) <= 3 * layer + last


@pytest.mark.parametrize("target", ["h100:4"])
def test_a_training_step_is_fully_sharded(target):
    model = abstract_model(SMALL, scan_layers=True)
    options = {"batch": 4, "length": 128, "mesh": {"data": 4}}
    copied, sharded = (
        ssmkit.compile_for(model, target, "train", **options, fully_sharded=one) for one in (False, True)
    )
    assert sharded.state_aliased == sharded.state_bytes < 0.3 * copied.state_bytes
    assert {"all-gather", "reduce-scatter"} <= sharded.collectives.keys()
    assert not {"all-gather", "reduce-scatter"} & copied.collectives.keys()


def test_the_command_counts_the_cycles_of_a_step():
    words = [sys.executable, "-m", "ssmkit", "compile", "--target", "v6e", "--program", "step", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "LIBTPU_INIT_ARGS"}
    record = json.loads(subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout)
    (part,) = record["parts"]
    assert 1000 < part["cycles"] < 1e6 and part["seconds"] == part["cycles"] / record["clock"]
    assert part["costliest"][0]["cycles"] < part["cycles"] and "dot_general" in part["costliest"][0]["source"]
