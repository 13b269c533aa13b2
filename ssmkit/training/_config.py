"""What a training run is made of, read from a TOML file."""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. In TOML, `[model]` holds the model's own keys and `[training]` everything else here.

    **Arguments:**

    - `model`: keys of `Mamba2Config`, but for `vocab_size`, which the tokenizer decides.
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

    model: Mapping[str, Any]
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
        # Per key: what must hold, and how that reads.
        positive = ("steps", "batch_size", "context", "evaluate_every", "checkpoint_every", "log_every")
        rules = {name: (getattr(self, name) >= 1, "at least 1") for name in positive}
        rules |= {name: (getattr(self, name) >= 0, "at least 0") for name in ("warmup_steps", "seed", "weight_decay")}
        rules |= {name: (0.0 <= getattr(self, name) < 1.0, "in [0, 1)") for name in ("dropout", "beta1", "beta2")}
        rules["vocab_size"] = (self.vocab_size >= 256, "at least 256")
        rules["learning_rate"] = (0.0 < self.learning_rate < math.inf, "positive")
        rules["final_learning_rate"] = (0.0 <= self.final_learning_rate < math.inf, "at least 0")
        rules["clip_norm"] = (self.clip_norm > 0.0, "positive")
        problems = [
            f"`{name}` must be {need}, got {getattr(self, name)}" for name, (good, need) in rules.items() if not good
        ]
        if problems:
            raise ValueError("training configuration: " + "; ".join(problems) + ".")

    @classmethod
    def from_toml(cls, path: Path) -> "TrainConfig":
        """Read a file with the tables `[model]` and `[training]`.

        **Raises:** `ValueError` for a syntax error, an unknown table or key, or a value of the wrong type, naming it.
        """
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from None
        unknown = sorted(set(tables) - {"model", "training"})
        problems = [f"unknown table or key {name} (known: [model], [training])" for name in unknown]
        tables = {"model": {}, "training": {}} | tables
        problems += [
            f"[{name}] must be a table" for name in ("model", "training") if not isinstance(tables[name], dict)
        ]
        training = tables["training"] if isinstance(tables["training"], dict) else {}
        types = {field.name: field.type for field in dataclasses.fields(cls) if field.name != "model"}
        unknown = sorted(set(training) - set(types))
        problems += [f"unknown key training.{name} (known: {', '.join(sorted(types))})" for name in unknown]
        for name in sorted(set(training) & set(types)):
            accepted = (int, float) if types[name] is float else (int,)
            if type(training[name]) not in accepted:
                expected = "a number" if types[name] is float else "a whole number"
                problems.append(f"training.{name} must be {expected}, got {training[name]!r}")
        if problems:
            raise ValueError(f"{path}: {'; '.join(problems)}.")
        values: dict[str, Any] = {
            name: float(value) if types[name] is float else value for name, value in training.items()
        }
        return cls(model=tables["model"], **values)
