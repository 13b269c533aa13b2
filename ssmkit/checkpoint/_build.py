"""Building of models from their configurations, with random weights."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import DTypeLike

from .._config import checks_itself
from .._construction import check_dtype, check_one_key
from .._language_model import AbstractLanguageModel
from .._shown import shown
from .._types import PRNGKeyArray
from ._describe import configured
from ._dialect import Architecture, architectures
from ._errors import CheckpointError


@checks_itself
def build(config: Any, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> AbstractLanguageModel[Any]:
    """Build the model that a configuration describes, with random weights.

    **Arguments:**

    - `config`: a configuration, such as a `ssmkit.LanguageModelConfig` or a `Mamba2Config`, or the content of a
        configuration file: a dictionary whose `model_type` names the architecture.
    - `key`: the key for the initialisation.
    - `dtype`: the dtype of projections, convolutions and embeddings. Arrays that a model keeps in float32 stay float32.

    **Returns:** the model, which has the configuration as `model.config`.

    **Raises:** `CheckpointError`, a `ValueError`, when the architecture of the configuration is unknown, or listing
    every unsupported key.
    """
    check_one_key(key)
    check_dtype(dtype)
    architecture, config = _from_file(config) if isinstance(config, Mapping) else (_of_type(config), config)
    return architecture.make(config, key=key, dtype=dtype)


def _of_type(config: Any) -> Architecture:
    for known in architectures():
        if type(config) is known.config:
            return known
    names = ", ".join(f"`{known.config.__name__}`" for known in architectures())
    raise CheckpointError(f"`config` must be a dictionary or one of {names}, got {shown(config)}.")


def _from_file(content: Mapping[str, Any]) -> tuple[Architecture, Any]:
    for known in architectures():
        for dialect in known.dialects:
            if dialect.matches(content):
                unknown = dialect.unknown_keys(content)
                if unknown:
                    raise CheckpointError(
                        "`config` has keys that are unknown: remove them.",
                        [f"`{name}`: got {shown(value)}" for name, value in unknown.items()],
                    )
                return known, configured(dialect, content)
    types = ", ".join(known.name for known in architectures())
    raise CheckpointError(
        f"`config` is of no known architecture: its `model_type` must be one of {types}, got "
        f"{shown(content.get('model_type'))}."
    )
