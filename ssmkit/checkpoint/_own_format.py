"""The format of models that a `ssmkit.LanguageModelConfig` describes: the configuration itself, and arrays by path."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from .._keys import OWN, REQUIRED, Key, unknown_keys
from .._model_config import KINDS, LanguageModelConfig
from ._configuration import read_keys
from ._dialect import Architecture, Dialect
from ._skeleton import arrays_of
from ._source import Source


_KEYS = {
    field.name: Key(KINDS[field.name], field.name, REQUIRED if field.default is dataclasses.MISSING else OWN)
    for field in dataclasses.fields(LanguageModelConfig)
}


def _read(content: Mapping[str, Any]) -> LanguageModelConfig:
    return LanguageModelConfig(**read_keys(content, _KEYS))


def _write(config: LanguageModelConfig, dtype: str) -> dict[str, Any]:
    return {"model_type": "ssmkit", **dataclasses.asdict(config), "dtype": dtype}


def _names(config: LanguageModelConfig) -> dict[str, Source]:
    return {path: Source(path) for path in arrays_of(ARCHITECTURE, _DIALECT, config, jnp.float32)}


_DIALECT = Dialect(
    name="ssmkit",
    config_file="config.json",
    weight_files=("model.safetensors",),
    matches=lambda content: content.get("model_type") == "ssmkit",
    read_config=_read,
    unknown_keys=lambda content: unknown_keys(content, _KEYS, ("model_type", "dtype")),
    write_config=_write,
    names=_names,
)
ARCHITECTURE = Architecture(
    name="ssmkit",
    config=LanguageModelConfig,
    description=lambda config: config,
    dialects=(_DIALECT,),
)
