"""What a training run is made of, read from a TOML file."""

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .._arguments import check_callable, check_is, path_of
from .._config import checks_itself
from ._fields import accepts, shortened, words
from ._toml import read_toml, to_toml


@checks_itself
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. In TOML, `[model]` holds the model's own keys and `[training]` everything else here.

    **Arguments:**

    - `model`: what the model is made of, for whoever makes it: `ssmkit train` takes keys of `Mamba2Config`, but for
        `vocab_size`, which the tokenizer decides. `fit` is given a model and needs none.
    - `vocab_size`: ids of the tokenizer that is trained first.
    - `steps`, `batch_size`, `context`: optimiser steps, sequences per step, tokens per sequence.
    - `learning_rate`, `final_learning_rate`, `warmup_steps`: linear warm-up, then a cosine.
    - `weight_decay`: AdamW's, on projections and embeddings only.
    - `beta1`, `beta2`, `clip_norm`: AdamW's moments; the gradient's norm is clipped.
    - `dropout`: share of features dropped on the embedding and every residual branch.
    - `seed`: of initialisation, data order and dropout.
    - `evaluate_every`, `checkpoint_every`, `log_every`: intervals in steps.

    **Raises:** `ValueError` listing every bad value.
    """

    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    vocab_size: int = 2048
    steps: int = 1000
    batch_size: int = 8
    context: int = 256
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    dropout: float = 0.1
    seed: int = 0
    evaluate_every: int = 250
    checkpoint_every: int = 100
    log_every: int = 10

    def __post_init__(self):
        values = {name: getattr(self, name) for name in _TYPES}
        problems = _of_another_type(values, "`{}`")
        problems += _out_of_range(values)
        if not isinstance(self.model, Mapping):
            problems.append(f"`model` must be a table, got {shortened(self.model)}")
        if problems:
            raise ValueError("training configuration: " + "; ".join(problems) + ".")

    @classmethod
    @checks_itself
    def from_toml(
        cls,
        path: str | os.PathLike[str],
        complete_model: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda table: table,
    ) -> "TrainConfig":
        """Read a file with the tables `[model]` and `[training]`.

        **Arguments:**

        - `path`: the file.
        - `complete_model`: called with the table `[model]`; gives `TrainConfig.model`, or raises `ValueError`.

        **Raises:** `ValueError` for a syntax error, or listing every unknown table or key and every bad value;
        `OSError` when the file cannot be read.
        """
        check_callable("complete_model", complete_model)
        tables = read_toml(path_of("path", path))
        unknown = sorted(set(tables) - {"model", "training"})
        problems = [f"unknown table or key {shortened(name)[1:-1]} (known: [model], [training])" for name in unknown]
        tables = {"model": {}, "training": {}} | tables
        problems += [f"[{name}] must be a table" for name in ("model", "training") if type(tables[name]) is not dict]
        model, training = (tables[name] if type(tables[name]) is dict else {} for name in ("model", "training"))
        unknown = sorted(set(training) - set(_TYPES))
        problems += [
            f"unknown key training.{shortened(name)[1:-1]} (known: {', '.join(sorted(_TYPES))})" for name in unknown
        ]
        values = {name: value for name, value in training.items() if name in _TYPES}
        problems += _of_another_type(values, "training.{}") + _out_of_range(values)
        try:
            model = complete_model(model)
        except ValueError as error:
            problems.append(str(error).rstrip("."))
        if problems:
            raise ValueError(f"{path}: {'; '.join(problems)}.")
        return cls(model, **{name: _TYPES[name](value) for name, value in values.items()})

    def to_toml(self) -> str:
        """The text of a file that `from_toml` reads back.

        **Raises:** `ValueError` when `model` holds what TOML cannot express.
        """
        return to_toml({"model": self.model, "training": {name: getattr(self, name) for name in _TYPES}})


@checks_itself
def check_run(config: Any, report: Any) -> None:
    """What every way to train is given.

    **Raises:** `ValueError` when either is something else.
    """
    check_is("config", config, TrainConfig, "Read one with `TrainConfig.from_toml`.")
    check_callable("report", report)


_TYPES: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(TrainConfig) if field.name != "model"}

_COUNTS = ("steps", "batch_size", "context", "evaluate_every", "checkpoint_every", "log_every")
# Which keys, what must hold, and how that reads. A number that is none, NaN, holds nothing.
_RULES: list[tuple[tuple[str, ...], Callable[[Any], bool], str]] = [
    (_COUNTS, lambda value: value >= 1, "at least 1"),
    (("warmup_steps", "seed"), lambda value: value >= 0, "at least 0"),
    ((*_COUNTS, "warmup_steps"), lambda value: value < 2**31, "below 2**31"),
    (("seed",), lambda value: value < 2**32, "below 2**32"),  # JAX's keys take 32 bits
    (("vocab_size",), lambda value: value >= 256, "at least 256"),
    (("vocab_size",), lambda value: value <= 2**20, "at most 2**20"),  # the trainer reserves memory for all
    (("weight_decay", "final_learning_rate"), lambda value: 0 <= value < math.inf, "finite and at least 0"),
    (("dropout", "beta1", "beta2"), lambda value: 0 <= value < 1, "in [0, 1)"),
    (("learning_rate",), lambda value: 0 < value < math.inf, "a finite number above 0"),
    (("clip_norm",), lambda value: value > 0, "above 0"),
]


def _of_another_type(values: Mapping[str, Any], label: str) -> list[str]:
    """A line for every value that is not of its field's type."""
    return [
        f"{label.format(name)} must be {words(_TYPES[name])}, got {shortened(value)}"
        for name, value in values.items()
        if not accepts(_TYPES[name], value)
    ]


def _out_of_range(values: Mapping[str, Any]) -> list[str]:
    """A line for every value of its field's type that must not be."""
    found: dict[str, str] = {}
    for names, holds, need in _RULES:
        for name in names:
            if name in values and name not in found and accepts(_TYPES[name], values[name]):
                if not (holds(values[name]) and _fits_a_float(values[name])):
                    found[name] = f"`{name}` must be {need}, got {shortened(values[name])}"
    return [found[name] for name in values if name in found]


def _fits_a_float(value: int | float) -> bool:
    """False for an integer of hundreds of digits."""
    return abs(value) <= sys.float_info.max or value == math.inf
