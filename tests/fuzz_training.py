"""Kinds of files that a training run leaves and reads again, for the fuzzer."""

import dataclasses
import functools
import pathlib
import random

import jax.numpy as jnp
import numpy as np
from fuzz import Kind, flipped, json_damage

import ssmkit
from ssmkit.training import LossCurve, Progress, TrainConfig, TrainState
from ssmkit.training._record import check_record, describe_run
from ssmkit.training._state import States, _check_sums


@functools.cache
def _run() -> dict:
    """What a run is described by."""
    return describe_run(_model(), TrainConfig({"width": 4}), _TEXT, _TEXT[:9])


@functools.cache
def _model() -> ssmkit.LanguageModel:
    import jax

    return ssmkit.LanguageModel(
        vocab_size=5,
        width=4,
        mixers=[ssmkit.GatedMLP(4, intermediate_size=4, key=jax.random.key(0))],
        key=jax.random.key(1),
    )


_TEXT = np.tile(np.arange(5, dtype=np.int32), 20)


def _state() -> TrainState:
    weights = {"a": jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3), "b": jnp.ones(4, jnp.complex64)}
    return TrainState(weights, {"count": jnp.zeros((), jnp.int32), "mu": weights}, jnp.array(3, jnp.int32))


def _make_state(folder: pathlib.Path) -> pathlib.Path:
    """The largest file of a state, which holds weights."""
    with States(folder, 2) as states:
        states.save(_state())
    item = folder / "states" / "3" / "default"
    return max((path for path in item.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _make_checksums(folder: pathlib.Path) -> pathlib.Path:
    _make_state(folder)
    return folder / "states" / "3" / "checksums.json"


def _check_state(folder: pathlib.Path) -> None:
    """All that is asked before orbax reads what its own files are."""
    _check_sums(folder / "states" / "3")


def _make_record(folder: pathlib.Path) -> pathlib.Path:
    check_record(folder, _run())
    return folder / "run.json"


def _make_curve(folder: pathlib.Path) -> pathlib.Path:
    curve = LossCurve(folder)
    for step in (10, 20):
        curve.append(Progress(step, 2.5, 3.5 if step == 20 else None, 1000.0))
    return folder / "loss.csv"


def _make_configuration(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "train.toml"
    path.write_text(TrainConfig({"hidden_size": 8, "pair": [0.0, float("inf")], "name": "x"}).to_toml(), "utf-8")
    return path


def _values() -> list[str]:
    """What is put in place of a value of a TOML file."""
    names = "true false nan inf -inf 0 -1 0.5 1e400 [] {} '' 1979-05-27 07:32:00".split()
    long = ["9" * 400, "9" * 5000, "'" + "x" * 5000 + "'", "[" * 500 + "]" * 500, "[" * 90_000, "{a={a={a=1}}}"]
    return [*names, *long, str(2**31), str(2**32), str(2**63), str(2**70), '"\\ud800"', "'/etc/passwd'"]


def toml_damage(content: bytes, generator: random.Random) -> bytes:
    """A changed copy of a TOML file: mostly well formed, with other values and keys."""
    if generator.random() < 0.3:
        return flipped(content, generator)
    lines = content.decode().splitlines()
    for _ in range(generator.choice((1, 1, 2, 3))):
        place = generator.randrange(len(lines))
        key, equals, _ = lines[place].partition(" = ")
        if generator.random() < 0.2:
            key, equals = generator.choice(["x" * 3000, '"\\n"', "a.b.c", "[x", "[[model]]", "[training]"]), " = "
        lines[place] = f"{key}{equals}{generator.choice(_values())}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


KINDS = [
    Kind("state", _make_state, _check_state, errors=(ValueError,)),
    Kind("state's checksums", _make_checksums, _check_state, json_damage, (ValueError,)),
    Kind("run.json", _make_record, lambda folder: check_record(folder, _run()), json_damage, (ValueError,)),
    Kind("loss.csv", _make_curve, LossCurve, errors=(ValueError,)),
    Kind(
        "train.toml",
        _make_configuration,
        lambda folder: dataclasses.asdict(TrainConfig.from_toml(folder / "train.toml")),
        toml_damage,
        (ValueError,),
    ),
]
