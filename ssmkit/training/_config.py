"""The configuration of a training run, read from a TOML file."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from .._arguments import check_callable, check_is, path_of
from .._config import checks_itself
from .._keys import OWN, Key, record
from .._kinds import Kind, Problems, anything, boolean, checked, integer, mapping, real
from ._toml import read_toml, to_toml


_COUNT = integer(1, 2**31 - 1)
_SHARE = real(lambda value: 0 <= value < 1, "a number in [0, 1)")
_FINITE = real(lambda value: 0 <= value < math.inf, "a finite number of at least 0")
_KINDS: dict[str, Kind] = {
    "vocab_size": integer(256, 2**20),  # the trainer reserves memory for all
    "steps": _COUNT,
    "batch_size": _COUNT,
    "context": _COUNT,
    "learning_rate": real(lambda value: 0 < value < math.inf, "a finite number above 0"),
    "final_learning_rate": _FINITE,
    "warmup_steps": integer(0, 2**31 - 1),
    "weight_decay": _FINITE,
    "beta1": _SHARE,
    "beta2": _SHARE,
    "clip_norm": real(lambda value: value > 0, "a number above 0"),
    "dropout": _SHARE,
    "seed": integer(0, 2**32 - 1),  # JAX's keys take 32 bits
    "evaluate_every": _COUNT,
    "checkpoint_every": _COUNT,
    "log_every": _COUNT,
    "keep_states": integer(2, 2**31 - 1),
    "fully_sharded": boolean,
}
_KEYS = {name: Key(kind, name, OWN) for name, kind in _KINDS.items()}


@checks_itself
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run. In TOML, `[model]` holds the model's keys and `[training]` all other keys.

    **Arguments:**

    - `model`: the configuration of the model. `ssmkit train` takes keys of `Mamba2Config`, or of the architecture that
        the key `model_type` names, such as `"ssmkit"` for a `ssmkit.LanguageModelConfig`. `vocab_size` is no key: it
        follows from the tokenizer. `fit` takes a model and ignores this field.
    - `vocab_size`: the number of ids of the tokenizer that is trained first.
    - `steps`, `batch_size`, `context`: optimiser steps, sequences per step, tokens per sequence.
    - `learning_rate`, `final_learning_rate`, `warmup_steps`: linear warm-up, then a cosine.
    - `weight_decay`: the weight decay of AdamW, on projections and embeddings only.
    - `beta1`, `beta2`, `clip_norm`: the decay rates of AdamW's moments; the bound to which the gradient's norm is
        clipped.
    - `dropout`: the share of features that are dropped on the embedding and on every residual branch.
    - `seed`: the seed of initialisation, data order and dropout.
    - `evaluate_every`, `checkpoint_every`, `log_every`: intervals in steps.
    - `keep_states`: how many of the newest states stay on the disk, at least 2.
    - `fully_sharded`: whether each device along the mesh's axis `data` keeps only its part of the matrices, of their
        gradients and of the optimiser's state (`ssmkit.fully_shard`). It saves memory, and costs exchanges and a second
        computation of every block's features. Without a mesh it has no effect.

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
    keep_states: int = 2
    fully_sharded: bool = False

    @property
    def decisive(self) -> Mapping[str, Any]:
        """The settings that decide the result of a run: all but the model's, intervals, and where arrays lie."""
        without = {"evaluate_every", "checkpoint_every", "log_every", "keep_states", "fully_sharded"}
        return {name: getattr(self, name) for name in _KEYS if name not in without}

    def __post_init__(self):
        given = {name: getattr(self, name) for name in _KEYS}
        try:
            checked([(".model", self.model, mapping(anything)), ("", given, record(_KEYS))])
        except Problems as problems:
            raise ValueError(f"training configuration: {problems}.") from None

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
        - `complete_model`: called with the table `[model]`; returns `TrainConfig.model`, or raises `ValueError`.

        **Raises:** `ValueError` for a syntax error, or listing every unknown table or key and every bad value;
        `OSError` when the file cannot be read.
        """
        check_callable("complete_model", complete_model)
        tables = {"model": Key(mapping(anything), "model", {}), "training": Key(record(_KEYS), "training", {})}
        content = read_toml(path_of("path", path))
        problems, model, training = [], {}, {}
        try:
            training = record(tables)(content)["training"]
        except Problems as wrong:
            problems += wrong.lines
        try:
            model = complete_model(table if isinstance(table := content.get("model"), Mapping) else {})
        except ValueError as error:
            problems.append(str(error).rstrip("."))
        if problems:
            raise ValueError(f"{path}: {'; '.join(problems)}.")
        return cls(model, **training)

    def to_toml(self) -> str:
        """The text of a file that `from_toml` reads back.

        **Raises:** `ValueError` when `model` holds a value that TOML cannot express.
        """
        return to_toml({"model": self.model, "training": {name: getattr(self, name) for name in _KEYS}})


@checks_itself
def check_run(config: Any, report: Any) -> None:
    """Check the model and the configuration, which every training function takes.

    **Raises:** `ValueError` when either has another type.
    """
    check_is("config", config, TrainConfig, "Read one with `TrainConfig.from_toml`.")
    check_callable("report", report)
