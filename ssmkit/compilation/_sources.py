"""Models without values, made from checkpoints and configurations. No weight is read."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from .._language_model import AbstractLanguageModel
from .._scan_layers import scan_layers as stacked
from .._shown import shown
from .._types import checks_itself
from ..checkpoint import build, describe
from ..checkpoint._json import read_json
from ..layers._array_kinds import matrix_mask
from ..layers._matrix import Int8Matrix
from ..layers._quantize import NARROW
from ._programs import is_form


@checks_itself
def abstract_model(
    source: Any,
    dtype: DTypeLike = jnp.float32,
    *,
    quantize: str | None = None,
    revision: str | None = None,
    layers: int | None = None,
    scan_layers: bool = False,
) -> AbstractLanguageModel[Any]:
    """A model with `jax.ShapeDtypeStruct`s in place of arrays: any size fits into memory.

    **Arguments:**

    - `source`: a checkpoint, as for `ssmkit.from_pretrained`; a `config.json` without weights; or a configuration, as
        for `ssmkit.build`.
    - `dtype`: the dtype of the weights. Arrays that the model keeps in float32 stay float32.
    - `quantize`: `"int8"` or `"bfloat16"` stores the matrices in this form, as `ssmkit.quantize` does.
    - `revision`: as for `ssmkit.from_pretrained`.
    - `layers`: the number of layers of the model in place of that of its configuration, `num_hidden_layers`.
    - `scan_layers`: whether equal blocks are stacked, as by `ssmkit.scan_layers`.

    **Raises:** `CheckpointError`, a `ValueError`, as `ssmkit.from_pretrained` and `ssmkit.build`; `ValueError` for
    `layers` of a model whose configuration has no such number.
    """
    if quantize is not None and quantize not in NARROW:
        raise ValueError(f"`quantize` must be one of {', '.join(NARROW)}, got {shown(quantize)}.")
    config = _config(source, revision)
    if layers is not None:
        config = _with_layers(config, layers)
    model = eqx.filter_eval_shape(lambda: build(config, key=jax.random.key(0), dtype=dtype))
    if quantize is not None:
        model = jax.tree.map(_NARROWED[quantize], matrix_mask(model), model)
    return eqx.filter_eval_shape(stacked, model) if scan_layers else model


def _config(source: Any, revision: str | None) -> Any:
    if not isinstance(source, str | os.PathLike):
        return source
    path = Path(source)
    if path.suffix == ".json" and path.is_file() and not path.name.endswith(".index.json"):
        return read_json(path)
    return describe(source, revision=revision).config


def _with_layers(config: Any, layers: int) -> Any:
    if isinstance(layers, bool) or layers < 1:
        raise ValueError(f"`layers` must be at least 1, got {shown(layers)}.")
    if isinstance(config, dict) and "num_hidden_layers" in config:
        return {**config, "num_hidden_layers": layers}
    if dataclasses.is_dataclass(config) and hasattr(config, "num_hidden_layers"):
        return dataclasses.replace(config, num_hidden_layers=layers)  # pyright: ignore[reportArgumentType]
    raise ValueError("`layers` needs a configuration with `num_hidden_layers`: this model lists its layers one by one.")


def _int8(is_matrix: bool, leaf: Any) -> Any:
    if not (is_matrix and is_form(leaf)):
        return leaf
    make = lambda: Int8Matrix(jnp.zeros(leaf.shape, jnp.int8), jnp.zeros(leaf.shape[:-1], jnp.float32))
    return eqx.filter_eval_shape(make)


def _bfloat16(is_matrix: bool, leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16) if is_matrix and is_form(leaf) else leaf


_NARROWED = {"int8": _int8, "bfloat16": _bfloat16}
