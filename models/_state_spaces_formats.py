"""The common part of mamba_ssm's file formats for Mamba and Mamba-2."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ssmkit.checkpoint import (
    CheckpointError,
    Dialect,
    Key,
    Source,
    boolean,
    factor,
    number,
    positive,
    read_keys,
    unknown_keys,
    whole,
    write_keys,
)

from ._mamba_family import AbstractMambaConfig
from ._mamba_family_formats import Read, Write
from ._unsupported_keys import UNSUPPORTED


STATE_SPACES_KEYS = {
    **UNSUPPORTED,
    "d_model": Key(positive, "hidden_size", 2560),
    "n_layer": Key(positive, "num_hidden_layers", 64),
    "vocab_size": Key(positive, "vocab_size", 50277),
    "pad_vocab_size_multiple": Key(positive, "pad_vocab_size_multiple", 8),
    "tie_embeddings": Key(boolean, "tie_word_embeddings", True),
    "residual_in_fp32": Key(boolean, "residual_in_fp32", True),
    "rms_norm": Key(boolean, "rms_norm", True),
    "d_intermediate": Key(whole, "d_intermediate", 0),
    "ssm_cfg.d_conv": Key(positive, "conv_kernel", 4),
    "ssm_cfg.expand": Key(factor, "expand", 2),
    "ssm_cfg.bias": Key(boolean, "use_bias", False),
    "ssm_cfg.conv_bias": Key(boolean, "use_conv_bias", True),
    "ssm_cfg.dt_min": Key(number, "time_step_min", 0.001),
    "ssm_cfg.dt_max": Key(number, "time_step_max", 0.1),
    "ssm_cfg.dt_init_floor": Key(number, "time_step_floor", 1e-4),
}

STATE_SPACES_DEAD = ("fused_add_norm",)
STACK_DEAD = ("attn_cfg",)  # settings of attention layers are dead without such layers

STATE_SPACES_LAYERS = ("Mamba1", "Mamba2")  # the first is meant where a file names none


def read_state_spaces(content: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """As `read_keys`; `ssm_cfg` holds arguments of the mixer's class."""
    if _layer(content) not in STATE_SPACES_LAYERS:
        default, *others = STATE_SPACES_LAYERS
        raise CheckpointError(
            f"`ssm_cfg` must name the layer {' or '.join(f'`{name}`' for name in others)}, or none, which means "
            f"`{default}`, got {content['ssm_cfg']!r}."
        )
    return read_keys(_flat(content, keys), keys)


def _flat(content: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """The content with keys such as `ssm_cfg.expand` in place of the one key `ssm_cfg`, and of others of its kind."""
    tables = {name.partition(".")[0] for name in keys if "." in name}
    flat = {}
    for name, value in content.items():
        inner = name in tables and isinstance(value, Mapping)
        flat |= {f"{name}.{key}": entry for key, entry in value.items()} if inner else {name: value}
    return flat


def write_state_spaces(config: AbstractMambaConfig, keys: Mapping[str, Key]) -> dict[str, Any]:
    """Write the content that `read_state_spaces` reads. Arguments of mixers are written if they are not defaults."""
    content: dict[str, Any] = {"fused_add_norm": True, "ssm_cfg": {}, "attn_cfg": {}}
    for name, value in write_keys(config, keys).items():
        table, dot, argument = name.partition(".")
        if not dot:
            content[name] = value
        elif value != keys[name].default:
            content[table][argument] = value
    return content


def stack_of(layer: str) -> Callable[[Mapping[str, Any]], bool]:
    """Build the `Dialect.matches` of a stack of nothing but this layer.

    Every architecture claims files with a layer that no architecture knows, so that one of them reports it.
    """

    def matches(content: Mapping[str, Any]) -> bool:
        """As `Dialect.matches`."""
        ours = is_state_spaces(content) and not content.get("attn_layer_idx")
        return ours and (_layer(content) == layer or _layer(content) not in STATE_SPACES_LAYERS)

    return matches


def is_state_spaces(content: Mapping[str, Any]) -> bool:
    """Whether a configuration file is one of mamba_ssm's."""
    return "d_model" in content and "n_layer" in content and "model_type" not in content


def state_spaces(
    matches: Callable[[Mapping[str, Any]], bool],
    names: Callable[[Any], Mapping[str, Source]],
    keys: Mapping[str, Key],
    dead: Collection[str],
    read_config: Read,
    write_config: Write,
) -> Dialect:
    """Build a state-spaces dialect with the known `keys`.

    **Arguments:**

    - `matches`, `names`, `read_config`, `write_config`: as for `Dialect`.
    - `keys`: the known keys.
    - `dead`: the keys that never change the model.
    """
    return Dialect(
        name="state-spaces",
        config_file="config.json",
        weight_files=("pytorch_model.bin", "model.safetensors"),
        matches=matches,
        read_config=read_config,
        unknown_keys=lambda content: unknown_keys(_flat(content, keys), keys, dead),
        write_config=write_config,
        names=names,
        base="backbone.",
        copies={"lm_head.weight": "backbone.embedding.weight"},
        writes_copies=True,
    )


def _layer(content: Mapping[str, Any]) -> Any:
    """The layer that a state-spaces configuration names, if it can be determined."""
    mixer = content.get("ssm_cfg", {})
    return mixer.get("layer", STATE_SPACES_LAYERS[0]) if isinstance(mixer, dict) else None
