"""The common part of the file formats of Mamba and Mamba-2."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from ssmkit.checkpoint import CheckpointError, Reshape, Source

from ._mamba_family import AbstractMambaConfig


# The tensors of a mixer's block in both architectures.
_LAYER = {
    "norm.weight": "norm.weight",
    "mixer.in_proj.weight": "mixer.in_proj.weight",
    "mixer.in_proj.bias": "mixer.in_proj.bias",
    "mixer.conv.weight": "mixer.conv1d.weight",
    "mixer.conv.bias": "mixer.conv1d.bias",
    "mixer.recurrence.A_log": "mixer.A_log",
    "mixer.D": "mixer.D",
    "mixer.out_proj.weight": "mixer.out_proj.weight",
    "mixer.out_proj.bias": "mixer.out_proj.bias",
}
# The tensors of an MLP's block, which follows a mixer's block if there are MLPs.
_MLP = {
    "norm.weight": "norm2.weight",
    "norm.bias": "norm2.bias",
    "mixer.fc1.weight": "mlp.fc1.weight",
    "mixer.fc2.weight": "mlp.fc2.weight",
}

Config = TypeVar("Config", bound=AbstractMambaConfig)


def made(build: Callable[..., Config], fields: Mapping[str, Any]) -> Config:
    """Build a configuration from these fields.

    **Raises:** `CheckpointError` when they do not fit together.
    """
    try:
        return build(**fields)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def refuse_unless(config: Any, format: str, **expressible: Any) -> None:
    """Check that fields without a key in `format` have the values that the format implies."""
    problems = [
        f"`{field}`: got {getattr(config, field)!r}, the format can only express {value!r}"
        for field, value in expressible.items()
        if getattr(config, field) != value
    ]
    if problems:
        raise CheckpointError(f"The {format} format cannot express this model.", problems)


def names(
    layer: Mapping[str, str], embedding: str, prefix: str = ""
) -> Callable[[AbstractMambaConfig], dict[str, Source]]:
    """Build a `Dialect.names`.

    **Arguments:**

    - `layer`: the tensors that only this architecture has in a block.
    - `embedding`: the name of the embedding.
    - `prefix`: the prefix of all names.
    """
    layer = {**_LAYER, "norm.bias": "norm.bias", **layer}

    def sources(config: AbstractMambaConfig) -> dict[str, Source]:
        """As `Dialect.names`."""
        kinds = (layer, _MLP) if config.d_intermediate else (layer,)
        count = len(kinds)
        steps: dict[str, tuple[Reshape, ...]] = {
            "mixer.conv.weight": (Reshape((-1, 1, config.conv_kernel)),),
            "mixer.D": (Reshape((-1,)),),
        }
        return {
            "embedding.weight": Source(f"{prefix}backbone.{embedding}.weight"),
            **{
                f"blocks.{count * i + j}.{path}": Source(f"{prefix}backbone.layers.{i}.{name}", steps.get(path, ()))
                for i in range(config.num_hidden_layers)
                for j, kind in enumerate(kinds)
                for path, name in kind.items()
            },
            "norm.weight": Source(f"{prefix}backbone.norm_f.weight"),
            "norm.bias": Source(f"{prefix}backbone.norm_f.bias"),
            "head.weight": Source(f"{prefix}lm_head.weight"),
        }

    return sources


Read: TypeAlias = Callable[[Mapping[str, Any]], Any]

Write: TypeAlias = Callable[[Any, str], dict[str, Any]]
