"""The record of a run's texts, settings and seed on disk, so that only the same run continues it."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Int

from .. import __version__
from .._files import replacing
from .._language_model import AbstractLanguageModel
from .._reading import read_regular
from .._shown import one_line, shown
from ._config import TrainConfig
from ._hosts import check_alike, once, whole
from ._state import STATES


RECORD, CONFIGURATION = "run.json", "train.toml"
_MOST_BYTES = 1 << 20
_MOST_DIFFERENCES = 20


def describe_run(
    model: AbstractLanguageModel,
    config: TrainConfig,
    train: Int[np.ndarray, " train_time"],
    valid: Int[np.ndarray, " valid_time"],
) -> dict[str, Any]:
    """Everything that determines the result of a run, as JSON values. Intervals and meshes do not count.

    **Arguments:** as for `fit`.
    """
    own = getattr(model, "config", None)
    table = dataclasses.asdict(own) if dataclasses.is_dataclass(own) and not isinstance(own, type) else {}
    run = {
        "ssmkit": __version__,
        "the training text": _digest_of_text(train),
        "the validation text": _digest_of_text(valid),
        "training": dict(config.decisive),
        "model": table | dict(config.model),
        "the model's arrays": _digest_of_structure(model),
        "the model's values": _sketch(model),
    }
    return json.loads(json.dumps(run, default=repr))


def check_run_of(directory: Path, run: Mapping[str, Any]) -> None:
    """As `check_record`, in the first of many processes, when all have been given the same run."""
    check_alike(json.dumps(run))
    once(lambda: check_record(directory, run))


def check_record(directory: Path, run: Mapping[str, Any]) -> None:
    """Compare a run with the record of the folder. If the folder has no record, write that of this run.

    **Raises:** `ValueError` listing every difference, or when the record is damaged.
    """
    path = directory / RECORD
    if path.exists():
        differences = list(_differences(_read(path), run))
        if differences:
            listed = "; ".join(differences[:_MOST_DIFFERENCES])
            more = f"; and {len(differences) - _MOST_DIFFERENCES} more" * (len(differences) > _MOST_DIFFERENCES)
            toml = directory / CONFIGURATION
            raise ValueError(
                f"{directory} holds a run that was made with something else: {listed}{more}. Continue it with what it "
                f"was made with{f' (its configuration: {toml})' * toml.exists()}, or train into another directory."
            )
        return
    if (directory / STATES).exists():
        raise ValueError(
            f"{directory / STATES} does not fit this configuration or is damaged (no {RECORD} beside it says what "
            "run it is of). Train into an empty directory."
        )
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(run, indent=2) + "\n", "utf-8")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        run = json.loads(read_regular(path, _MOST_BYTES).decode("utf-8"))
        if not isinstance(run, dict):
            raise ValueError("no JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}, which says what run the directory holds, is damaged ({shown(str(error))}). Train into "
            "another directory."
        ) from None
    return run


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str | None = None) -> Iterator[str]:
    """A line for every entry that differs. The version of ssmkit may differ.

    **Arguments:**

    - `prefix`: the prefix of the names of settings; `None` for the entries of the record itself.
    """
    for name in [*now, *sorted(set(then) - set(now))]:
        old, new = then.get(name), now.get(name)
        if name == "ssmkit" or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, prefix="" if name == "training" else f"{prefix or ''}{name}.")
        elif name == "the model's values":
            if then.get("the model's arrays") == now["the model's arrays"] and not _alike(old, new):
                yield "the model started from other values"
        else:
            label = name if name in now else one_line(name)
            quoted = label if prefix is None else f"`{prefix}{label}`"
            old, new = (shown(value) for value in (old, new))
            yield f"{quoted}: {old} then, {new} now"


def _digest_of_text(tokens: Int[np.ndarray, " time"]) -> str:
    ids = np.ascontiguousarray(tokens, np.int32)
    return f"{ids.size} tokens, {hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()}"


def _digest_of_structure(model: AbstractLanguageModel) -> str:
    """The class, the number of parameters, and a checksum of the paths, shapes and dtypes of the arrays."""
    arrays = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_array))[0]
    listed = [f"{jax.tree_util.keystr(path)} {array.dtype}{array.shape}" for path, array in arrays]
    count = sum(array.size for _, array in arrays)
    checksum = hashlib.blake2b("\n".join(listed).encode(), digest_size=8).hexdigest()
    return f"{type(model).__name__} of {count} parameters, {checksum}"


def _sketch(model: AbstractLanguageModel) -> list[float]:
    """The size and sum of a sample of the weights. Another initialisation changes them, but rounding hardly does."""
    samples = []
    for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)):
        values = np.asarray(whole(leaf)).reshape(-1)[:: max(1, leaf.size // 1024)]
        samples.append(values.astype(np.complex128).view(np.float64))
    weights = np.concatenate([np.zeros(0), *samples])
    return [float(np.linalg.norm(weights)), float(np.dot(weights, np.cos(np.arange(weights.size))))]


def _alike(old: Any, new: Any) -> bool:
    """Whether two sketches are equal up to rounding, which may differ in the initialisation on another machine."""
    numbers = isinstance(old, list) and len(old) == 2 and all(type(number) is float for number in old)
    return numbers and all(math.isclose(a, b, rel_tol=0, abs_tol=1e-4 * new[0]) for a, b in zip(old, new, strict=True))
