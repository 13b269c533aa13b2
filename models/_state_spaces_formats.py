"""The common part of mamba_ssm's file formats for Mamba and Mamba-2."""

from collections.abc import Collection, Mapping
from typing import Any

from ssmkit.checkpoint import (
    CheckpointError,
    Dialect,
    Key,
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
from ._mamba_family_formats import Read, Write, names
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

STATE_SPACES_DEAD = ("attn_cfg", "fused_add_norm")  # settings of attention layers are dead without such layers

STATE_SPACES_LAYERS = ("Mamba1", "Mamba2")  # the first is meant where a file names none


def read_state_spaces(content: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """As `read_keys`; `ssm_cfg` holds arguments of the mixer's class."""
    if _layer(content) not in STATE_SPACES_LAYERS:
        default, *others = STATE_SPACES_LAYERS
        raise CheckpointError(
            f"`ssm_cfg` must name the layer {' or '.join(f'`{name}`' for name in others)}, or none, which means "
            f"`{default}`, got {content['ssm_cfg']!r}."
        )
    return read_keys(_flat(content), keys)


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with keys such as `ssm_cfg.expand` in place of the one key `ssm_cfg`."""
    flat = {name: value for name, value in content.items() if name != "ssm_cfg"}
    return flat | {f"ssm_cfg.{name}": value for name, value in content.get("ssm_cfg", {}).items()}


def write_state_spaces(config: AbstractMambaConfig, keys: Mapping[str, Key]) -> dict[str, Any]:
    """Write the content that `read_state_spaces` reads. Arguments of the mixer are written if they are not defaults."""
    content: dict[str, Any] = {"fused_add_norm": True, "ssm_cfg": {}}
    for name, value in write_keys(config, keys).items():
        mixer_name = name.removeprefix("ssm_cfg.")
        if mixer_name == name:
            content[name] = value
        elif value != keys[name].default:
            content["ssm_cfg"][mixer_name] = value
    return content


def state_spaces(
    layer: dict[str, str],
    name: str,
    keys: Mapping[str, Key],
    dead: Collection[str],
    read_config: Read,
    write_config: Write,
) -> Dialect:
    """Build the state-spaces dialect of the layer `name`, with the known `keys`; other arguments are as for `hf`.

    Every architecture claims files with a layer that no architecture knows, so that one of them reports it.
    """

    def matches(content: Mapping[str, Any]) -> bool:
        """As `Dialect.matches`."""
        ours = "d_model" in content and "n_layer" in content and "model_type" not in content
        return ours and (_layer(content) == name or _layer(content) not in STATE_SPACES_LAYERS)

    return Dialect(
        name="state-spaces",
        config_file="config.json",
        weight_files=("pytorch_model.bin", "model.safetensors"),
        matches=matches,
        read_config=read_config,
        unknown_keys=lambda content: unknown_keys(_flat(content), keys, dead),
        write_config=write_config,
        names=names(layer, "embedding"),
        base="backbone.",
        copies={"lm_head.weight": "backbone.embedding.weight"},
        writes_copies=True,
    )


def _layer(content: Mapping[str, Any]) -> Any:
    """The layer that a state-spaces configuration names, if it can be determined."""
    mixer = content.get("ssm_cfg", {})
    return mixer.get("layer", STATE_SPACES_LAYERS[0]) if isinstance(mixer, dict) else None
