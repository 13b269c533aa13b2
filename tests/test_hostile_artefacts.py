"""Artefacts that somebody changed: one error, and never a crash."""

import copy
import json
import os
import pickle
import random
import signal
import sys

import jax
import jax.numpy as jnp
import pytest
from fuzz import flipped
from jax import export

from ssmkit import CheckpointError, load_exported, save_exported
from ssmkit.export import _inspection, foreign_operations, is_exported
from ssmkit.export._inspection import inspect_programs
from ssmkit.models import Mamba2, Mamba2Config


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    """A folder whose files each test puts back."""
    config = Mamba2Config(vocab_size=7, hidden_size=4, num_hidden_layers=1, state_size=2, head_dim=4, chunk_size=2)
    folder = tmp_path_factory.mktemp("export") / "model"
    save_exported(Mamba2(config, key=jax.random.key(0)), folder, lengths=(2,))
    return folder


@pytest.fixture(scope="module")
def program():
    """A small one."""
    array = jax.ShapeDtypeStruct((4,), jnp.float32)
    return bytes(export.export(jax.jit(lambda x: jnp.sin(x) @ x))(array).serialize())


MODULE = "module @m {{\n  func.func public @main(%arg0: tensor<f32>) -> tensor<f32> {{\n{}\n    return %0\n  }}\n{}\n}}"


@pytest.mark.parametrize(
    "line, found",
    [
        ('%0 = stablehlo.composite "chlo.x" %1 {decomposition = @f} : () -> ()', ["stablehlo.composite"]),
        ('%0 = "stablehlo.composite"(%1) <{name = "x", decomposition = @f}> : () -> ()', ["stablehlo.composite"]),
        (
            '%0 = "stablehlo.custom_call"(%1) <{a.call_target_name = "shape_assertion", call_target_name = "evil"}>',
            ["stablehlo.custom_call @evil"],
        ),
        (
            '%0 = "stablehlo.custom_call"(%1) <{call_target_name = "shape_assertion"}> : () -> ()',
            ["stablehlo.custom_call @shape_assertion"],
        ),
        ('stablehlo.custom_call @"shape_assertion"(%1) : () -> ()', ["stablehlo.custom_call @shape_assertion"]),
        ("stablehlo.custom_call @shape_assertion_not(%1) : () -> ()", ["stablehlo.custom_call @shape_assertion_not"]),
        ("stablehlo.custom_call @shape_assertion(%1) : () -> ()", []),
        ('%0:2 = "stablehlo.recv"(%1) <{is_host_transfer = true}> : () -> ()', ["stablehlo.recv"]),
        ('"stablehlo.all_reduce"(%1) ({ : () -> ()', ["stablehlo.all_reduce"]),
        ("%0 = stablehlo.partition_id : tensor<ui32>", ["stablehlo.partition_id"]),
        ("%0 = stablehlo.reduce(%1 init: %2) applies evil.add across dimensions = [0] : x", ["evil.add"]),
        ("%0 = stablehlo.reduce(%1 init: %2) applies stablehlo.add across dimensions = [0] : x", []),
        ("%0 = call_indirect %1(%2) : (f32) -> f32", ["func.call_indirect"]),
        ("%0 = call @f(%1) : (tensor<f32>) -> tensor<f32>", []),
        ("%0 = builtin.unrealized_conversion_cast %1 : x to y", ["builtin.unrealized_conversion_cast"]),
        ("%0 = stablehlo.an_operation_of_next_year %1 : x", ["stablehlo.an_operation_of_next_year"]),
        ("%0 = chlo.erf %1 : tensor<f32> -> tensor<f32>", []),
    ],
)
def test_what_leaves_a_program_is_found(line, found):
    assert foreign_operations(MODULE.format("    " + line, "")) == found


def test_functions_without_a_body_are_found():
    outside = "  func.func private @f(tensor<f32>) -> tensor<f32>"
    assert foreign_operations(MODULE.format("", outside)) == ["func.func without a body"]
    assert foreign_operations(MODULE.format("", outside + " {\n return %0\n }")) == []


def test_a_crash_of_the_reader_is_a_reason(program, monkeypatch):
    """The reader is another process: whatever kills it, this one goes on with the next program."""
    read = _inspection._ask
    monkeypatch.setattr(_inspection, "_INSPECTED", set())

    def crash(programs):
        alive = [] if b"crash" in programs[0] else read(programs[:1])[0]
        return alive, f"its reader ended with status {-signal.SIGSEGV}"

    monkeypatch.setattr(_inspection, "_ask", crash)
    reasons = inspect_programs({"a": b"crash", "b": program, "c": b"crash too"})
    assert reasons == dict.fromkeys("ac", "not readable by this JAX (its reader ended with status -11)")


def test_changed_programs_give_reasons(program, monkeypatch):
    """Some of these crash MLIR's reader."""
    monkeypatch.setattr(_inspection, "_INSPECTED", set())
    generator = random.Random(0)
    changed = {str(n): flipped(program, generator) for n in range(60)}
    reasons = inspect_programs(changed | {"unchanged": program})
    assert "unchanged" not in reasons and len(reasons) > 30
    assert all(len(reason) < 1000 for reason in reasons.values())


def test_programs_are_inspected_once(artefact, monkeypatch):
    load_exported(artefact)
    monkeypatch.setattr(_inspection, "_ask", lambda programs: pytest.fail("inspected again"))
    assert load_exported(artefact).vocab_size == 7


def test_no_interpreter(program, monkeypatch):
    monkeypatch.setattr(_inspection, "_INSPECTED", set())
    for executable, message in (("/nowhere/python", "none could be started"), ("/bin/true", "cannot import JAX")):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(CheckpointError, match=message):
            inspect_programs({"a": program})


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("vocab_size", "1" + "0" * 400, "an integer of 401 digits"),
        ("version", '{"__float__": 1' + "0" * 400 + "}", "an integer of 401 digits"),
        ("logits", json.dumps("x" * 100_000), "`logits` must be a dtype, got 'xxx"),
        ("lengths", json.dumps(list(range(1, 2000))), "`lengths` must be from 1 to 1000 lengths, got"),
        ("format", "[" * 50_000, "cannot be read as JSON"),
    ],
)
def test_manifests_of_another_kind(artefact, key, text, message):
    path = artefact / "exported.json"
    valid = path.read_text()
    path.write_text(json.dumps(json.loads(valid) | {key: "@"}).replace('"@"', text))
    try:
        with pytest.raises(CheckpointError, match=message) as error:
            load_exported(artefact)
        assert len(str(error.value)) < 2000
    finally:
        path.write_text(valid)


@pytest.mark.parametrize("name", ["exported.json", "weights.safetensors", "program"])
def test_only_regular_files_of_an_artefact_are_opened(artefact, name):
    path = next(artefact.glob("*/step.bin")) if name == "program" else artefact / name
    kept = path.rename(path.with_name("kept"))
    try:
        os.mkfifo(path)
        with pytest.raises(CheckpointError, match="[Nn]ot a regular file|holds no weights"):
            load_exported(artefact)
    finally:
        path.unlink()
        kept.rename(path)


def test_paths_that_are_none(artefact):
    for path in ("x" * 5000, "a\0b", ""):
        assert not is_exported(path)
        with pytest.raises(CheckpointError):
            load_exported(path)
        with pytest.raises(CheckpointError):
            load_exported(artefact, weights=path or "missing")


def test_an_exported_model_says_that_it_cannot_be_pickled(artefact):
    model = load_exported(artefact)
    with pytest.raises(TypeError, match="cannot be pickled: call `ssmkit.load_exported` in every process"):
        pickle.dumps(model)
    assert copy.deepcopy(model).programs is model.programs
