"""What a training run is made of, read from a TOML file."""

import dataclasses
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
        positive = ("steps", "batch_size", "context", "evaluate_every", "checkpoint_every", "log_every")
        problems = [f"`{name}` must be at least 1, got {getattr(self, name)}" for name in positive if getattr(self, name) < 1]
        if not 0.0 <= self.dropout < 1.0:
            problems.append(f"`dropout` must lie in [0, 1), got {self.dropout}")
        if self.learning_rate <= 0.0:
            problems.append(f"`learning_rate` must be positive, got {self.learning_rate}")
        if problems:
            raise ValueError("training configuration: " + "; ".join(problems) + ".")

    @classmethod
    def from_toml(cls, path: Path) -> "TrainConfig":
        """Read a file with the tables `[model]` and `[training]`.

        **Raises:** `ValueError` for a syntax error or an unknown table or key, naming it.
        """
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from None
        unknown = sorted(set(tables) - {"model", "training"})
        training = tables.get("training", {})
        known = {field.name for field in dataclasses.fields(cls)} - {"model"}
        unknown += [f"training.{name}" for name in sorted(set(training) - known)]
        if unknown:
            raise ValueError(f"{path}: unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
        return cls(model=tables.get("model", {}), **training)
