"""Training from two text files to a model directory that every tool can read."""

import contextlib
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from .._arguments import check_callable, check_model, path_of
from .._config import checks_itself
from .._files import replacing
from .._language_model import AbstractLanguageModel
from .._reading import open_regular
from ..checkpoint import CheckpointError, check_writable, save_pretrained
from ..text._files import read_text
from ..text._tokenizer import Tokenizer
from ._config import TrainConfig, check_run
from ._data import check_texts
from ._extra import require
from ._hosts import check_alike, once
from ._lock import occupied
from ._loop import Progress, fit
from ._precision import check_trainable
from ._record import CONFIGURATION, RECORD, check_record, describe_run
from ._report import LossCurve


@checks_itself
def train_files(
    make_model: Callable[[TrainConfig, int], AbstractLanguageModel],
    config: TrainConfig,
    *,
    train: str | os.PathLike[str],
    valid: str | os.PathLike[str],
    out: str | os.PathLike[str],
    report: Callable[[Progress], None],
    complete_model: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda table: table,
    mesh: Mesh | None = None,
) -> AbstractLanguageModel:
    """Train on a UTF-8 text file and save model, tokenizer, configuration and loss curve in `out`.

    The model is saved each time the state is saved, so that the model of an interrupted run can be loaded. To continue
    an interrupted run, call the function again with the same arguments.

    **Arguments:**

    - `make_model`: makes the model at step 0, from the configuration and the number of token ids.
    - `config`: the run.
    - `train`, `valid`: text files.
    - `out`: the directory, created if necessary. A `tokenizer.json` in it is used; otherwise a tokenizer is trained.
    - `report`: called with each `Progress`.
    - `complete_model`: as for `TrainConfig.from_toml`, which reads a `train.toml` that is already in `out`.
    - `mesh`: as for `fit`.

    **Returns:** the trained model, also saved in `out`, in its architecture's first format.

    **Raises:** `ValueError` for texts that are not UTF-8 or too short, for a model that cannot be saved, for a
    directory that holds another model, and as `fit`; `OSError` when a text cannot be read.
    """
    require("matplotlib")
    check_run(config, report)
    check_callable("make_model", make_model)
    check_callable("complete_model", complete_model)
    train, valid, out = (path_of(*given) for given in (("train", train), ("valid", valid), ("out", out)))
    with contextlib.ExitStack() as stack:
        if once(out.exists):  # else nothing is made before everything that can be wrong was looked at
            stack.enter_context(occupied(out))
            once(lambda: _check_free(out, config, complete_model))
        texts = {name: _read(path) for name, path in (("train", train), ("valid", valid))}
        tokenizer_path = out / "tokenizer.json"
        if once(tokenizer_path.exists):
            tokenizer = Tokenizer.from_file(tokenizer_path)
        else:
            tokenizer = Tokenizer.train(texts["train"].splitlines(keepends=True), config.vocab_size)
        tokens = {name: np.asarray(tokenizer.encode(text, special=False), np.int32) for name, text in texts.items()}
        model = make_model(config, tokenizer.vocab_size)
        check_model(model)
        check_texts(config, **tokens, vocab_size=model.vocab_size)
        check_trainable(model)
        _check_writable(model)

        stack.enter_context(occupied(out))
        run, curves = describe_run(model, config, **tokens), []

        def prepare() -> None:
            curves.append(LossCurve(out))
            check_record(out, run)  # before a tokenizer, which another text would use
            _write_absent(tokenizer_path, tokenizer.save)
            _write_absent(out / CONFIGURATION, lambda path: path.write_text(configuration, "utf-8"))

        configuration = config.to_toml()
        check_alike(json.dumps(run))
        once(prepare)

        def record(progress: Progress) -> None:
            (curve,) = curves
            curve.append(progress)
            if progress.valid_loss is not None:
                curve.plot()
            report(progress)

        return fit(
            model,
            config,
            **tokens,
            directory=out,
            report=record,
            keep=lambda model: save_pretrained(model, out),
            mesh=mesh,
        )


def _write_absent(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file, unless it is there."""
    if not path.exists():
        with replacing(path) as temporary:
            write(temporary)


def _check_free(
    out: Path, config: TrainConfig, complete_model: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> None:
    """Check that a new run would overwrite no other files.

    **Raises:** `ValueError` when it would.
    """
    if (out / RECORD).exists():
        return  # that run is compared with this one
    for name in ("config.json", "model.safetensors"):
        if (out / name).exists():
            raise ValueError(f"{out} holds a model ({name}) that no run made there. Name another directory.")
    path = out / CONFIGURATION
    if path.exists() and _as_kept(TrainConfig.from_toml(path, complete_model)) != _as_kept(config):
        raise ValueError(f"{path} is another configuration than this run's. Move it away, or train with it.")


def _as_kept(config: TrainConfig) -> Mapping[str, Any]:
    """A configuration with TOML's values, in which a tuple is a list."""
    return tomllib.loads(config.to_toml())


def _read(path: Path) -> str:
    """Read a text from a regular file, because the run must read it again when it continues."""
    with open_regular(path):
        pass
    return read_text(path)


def _check_writable(model: AbstractLanguageModel) -> None:
    try:
        check_writable(model)
    except CheckpointError as error:
        raise ValueError(
            f"this model cannot be saved, so it is not trained: {error} Or train it with "
            "`ssmkit.training.fit`, which leaves saving to you."
        ) from error
