"""The on-disk formats of Mamba-2, as data.

- `hf`: HF transformers' `Mamba2ForCausalLM`. Keys that a file leaves out have the defaults of HF's class, which are
    Codestral's. `vocab_size` counts padding rows; two keys of our own, which HF ignores, remember how many they are.
- `state-spaces`: Mamba-2 models of the mamba_ssm package, whose defaults stand for what a file leaves out. This format
    has no place for the ids of special tokens.
- `mistral`: Mistral's Mamba-Codestral. Read only.
"""

import math
from collections.abc import Mapping
from typing import Any

from ssmkit.checkpoint import (
    Architecture,
    CheckpointError,
    Dialect,
    Key,
    boolean,
    flatten,
    insert_axis,
    number,
    only,
    optional,
    pair,
    positive,
    read_keys,
    whole,
    write_keys,
)

from .mamba2 import Mamba2, Mamba2Config


_UNBOUNDED = (0.0, math.inf)

_HF_KEYS = {
    "model_type": Key(only("mamba2")),
    "vocab_size": Key(positive, "padded_vocab_size", 32768),
    "unpadded_vocab_size": Key(positive, "vocab_size", None),
    "pad_vocab_size_multiple": Key(positive, "pad_vocab_size_multiple", 1),
    "hidden_size": Key(positive, "hidden_size", 4096),
    "num_hidden_layers": Key(positive, "num_hidden_layers", 64),
    "state_size": Key(positive, "state_size", 128),
    "head_dim": Key(positive, "head_dim", 64),
    "expand": Key(positive, "expand", 2),
    "num_heads": Key(positive, "num_heads", 128),
    "n_groups": Key(positive, "n_groups", 8),
    "conv_kernel": Key(positive, "conv_kernel", 4),
    "chunk_size": Key(positive, "chunk_size", 256),
    "use_bias": Key(boolean, "use_bias", False),
    "use_conv_bias": Key(boolean, "use_conv_bias", True),
    "hidden_act": Key(only("silu", "swish"), "hidden_act", "silu"),
    "rms_norm": Key(only(True), default=True),
    "layer_norm_epsilon": Key(number, "layer_norm_epsilon", 1e-5),
    "residual_in_fp32": Key(boolean, "residual_in_fp32", True),
    "time_step_min": Key(number, "time_step_min", 0.001),
    "time_step_max": Key(number, "time_step_max", 0.1),
    "time_step_floor": Key(number, "time_step_floor", 1e-4),
    "time_step_limit": Key(pair, "time_step_limit", _UNBOUNDED),
    "tie_word_embeddings": Key(boolean, "tie_word_embeddings", False),
    "bos_token_id": Key(optional(whole), "bos_token_id", 0),
    "eos_token_id": Key(optional(whole), "eos_token_id", 2),
    "pad_token_id": Key(optional(whole), "pad_token_id", 1),
}
# How the file was made, how weights were initialised, how outputs are returned. `norm_before_gate` and
# `intermediate_size` stand in files of old versions of transformers, whose code never read them.
_HF_DEAD = frozenset(
    """
    _attn_implementation_autoset _name_or_path architectures auto_map chunk_size_feed_forward dtype id2label
    initializer_range intermediate_size is_decoder is_encoder_decoder label2id norm_before_gate output_attentions
    output_hidden_states problem_type rescale_prenorm_residual return_dict time_step_init_scheme time_step_rank
    time_step_scale torch_dtype torchscript transformers_version use_cache
    """.split()
)

_STATE_SPACES_KEYS = {
    "d_model": Key(positive, "hidden_size", 2560),
    "n_layer": Key(positive, "num_hidden_layers", 64),
    "vocab_size": Key(positive, "vocab_size", 50277),
    "pad_vocab_size_multiple": Key(positive, "pad_vocab_size_multiple", 8),
    "tie_embeddings": Key(boolean, "tie_word_embeddings", True),
    "residual_in_fp32": Key(boolean, "residual_in_fp32", True),
    "rms_norm": Key(only(True), default=True),
    "d_intermediate": Key(only(0), default=0),
    "attn_layer_idx": Key(only([]), default=[]),
    "ssm_cfg.layer": Key(only("Mamba2"), default="Mamba1"),
    "ssm_cfg.d_state": Key(positive, "state_size", 128),
    "ssm_cfg.d_conv": Key(positive, "conv_kernel", 4),
    "ssm_cfg.expand": Key(positive, "expand", 2),
    "ssm_cfg.headdim": Key(positive, "head_dim", 64),
    "ssm_cfg.ngroups": Key(positive, "n_groups", 1),
    "ssm_cfg.chunk_size": Key(positive, "chunk_size", 256),
    "ssm_cfg.bias": Key(boolean, "use_bias", False),
    "ssm_cfg.conv_bias": Key(boolean, "use_conv_bias", True),
    "ssm_cfg.D_has_hdim": Key(boolean, "D_has_hdim", False),
    "ssm_cfg.dt_min": Key(number, "time_step_min", 0.001),
    "ssm_cfg.dt_max": Key(number, "time_step_max", 0.1),
    "ssm_cfg.dt_init_floor": Key(number, "time_step_floor", 1e-4),
    "ssm_cfg.dt_limit": Key(pair, "time_step_limit", _UNBOUNDED),
    "ssm_cfg.activation": Key(only("silu", "swish"), default="silu"),
    "ssm_cfg.d_ssm": Key(optional(positive), "inner_size", None),
    "ssm_cfg.rmsnorm": Key(only(True), default=True),
    "ssm_cfg.norm_before_gate": Key(only(False), default=False),
}
_STATE_SPACES_DEAD = (  # settings of attention layers are dead without such layers
    "attn_cfg",
    "fused_add_norm",
    "ssm_cfg.A_init_range",
    "ssm_cfg.conv_init",
    "ssm_cfg.process_group",
    "ssm_cfg.sequence_parallel",
    "ssm_cfg.use_mem_eff_path",
)

_MISTRAL_KEYS = {
    "model_type": Key(only("mamba")),
    "dim": Key(positive, "hidden_size"),
    "n_layers": Key(positive, "num_hidden_layers"),
    "vocab_size": Key(positive, "vocab_size"),
    "n_groups": Key(positive, "n_groups"),
    "pad_vocab_size_multiple": Key(positive, "pad_vocab_size_multiple", 1),
    "tie_embeddings": Key(boolean, "tie_word_embeddings", False),
    "residual_in_fp32": Key(boolean, "residual_in_fp32", True),
    "rms_norm": Key(only(True), default=True),
}
_MISTRAL_DEAD = ("fused_add_norm",)


def _config(fields: dict[str, Any], **checked: Any) -> Mamba2Config:
    """A configuration whose derived sizes are as the file says, where it says anything (not `None`)."""
    try:
        config = Mamba2Config(**fields)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    problems = [
        f"`{name}`: got {value}, but the other keys imply {getattr(config, name)}"
        for name, value in checked.items()
        if value is not None and value != getattr(config, name)
    ]
    if problems:
        raise CheckpointError("The configuration contradicts itself.", problems)
    return config


def _refuse_unless(config: Mamba2Config, format: str, **expressible: Any) -> None:
    """Raise unless the fields that `format` has no key for have the values that it implies."""
    problems = [
        f"`{field}`: got {getattr(config, field)!r}, the format can only express {value!r}"
        for field, value in expressible.items()
        if getattr(config, field) != value
    ]
    if problems:
        raise CheckpointError(f"The {format} format cannot express this model.", problems)


def _read_hf(content: Mapping[str, Any]) -> Mamba2Config:
    """As `Dialect.read_config`."""
    content = {"unpadded_vocab_size": content.get("vocab_size", _HF_KEYS["vocab_size"].default), **content}
    fields = read_keys(content, _HF_KEYS, _HF_DEAD)
    rows = fields.pop("padded_vocab_size")
    return _config(fields, padded_vocab_size=rows)


def _write_hf(config: Mamba2Config, dtype: str) -> dict[str, Any]:
    """As `Dialect.write_config`. JSON has no infinity: unbounded step sizes, everybody's default, are left out."""
    _refuse_unless(config, "hf", D_has_hdim=False)
    content = {"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "dtype": dtype}
    content |= write_keys(config, _HF_KEYS)
    if config.padded_vocab_size == config.vocab_size:
        del content["unpadded_vocab_size"], content["pad_vocab_size_multiple"]
    if config.time_step_limit == _UNBOUNDED:
        del content["time_step_limit"]
    elif math.isinf(config.time_step_limit[1]):
        content["time_step_limit"] = [config.time_step_limit[0], {"__float__": "Infinity"}]
    return content


def _read_state_spaces(content: Mapping[str, Any]) -> Mamba2Config:
    """As `Dialect.read_config`; `ssm_cfg` holds arguments of the mixer's class."""
    mixer = content.get("ssm_cfg", {})
    if not isinstance(mixer, dict) or mixer.get("layer", "Mamba1") != "Mamba2":
        raise CheckpointError(
            f"`ssm_cfg` must name the layer `Mamba2`, got {mixer!r}. Without a layer it means Mamba1: an architecture "
            "that is not known here."
        )
    flat = {name: value for name, value in content.items() if name != "ssm_cfg"}
    flat |= {f"ssm_cfg.{name}": value for name, value in mixer.items()}
    fields = read_keys(flat, _STATE_SPACES_KEYS, _STATE_SPACES_DEAD)
    inner = fields.pop("inner_size")
    return _config(fields, inner_size=inner)


def _write_state_spaces(config: Mamba2Config, dtype: str) -> dict[str, Any]:
    """As `Dialect.write_config`; arguments of the mixer are written where they differ from their defaults."""
    _refuse_unless(config, "state-spaces", layer_norm_epsilon=1e-5)
    content: dict[str, Any] = {"d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}}
    content |= {"rms_norm": True, "fused_add_norm": True, "ssm_cfg": {"layer": "Mamba2"}}
    for name, value in write_keys(config, _STATE_SPACES_KEYS).items():
        mixer_name = name.removeprefix("ssm_cfg.")
        if mixer_name == name:
            content[name] = value
        elif name != "ssm_cfg.d_ssm" and value != _STATE_SPACES_KEYS[name].default:
            content["ssm_cfg"][mixer_name] = value
    return content


def _read_mistral(content: Mapping[str, Any]) -> Mamba2Config:
    """As `Dialect.read_config`."""
    return _config(read_keys(content, _MISTRAL_KEYS, _MISTRAL_DEAD))


def _names(embedding: str, prefix: str = "") -> dict[str, str]:
    """Where each array of the model lies, for a name of the embedding and a prefix to all names."""
    layer = {
        "norm.weight": "norm.weight",
        "mixer.in_proj.weight": "mixer.in_proj.weight",
        "mixer.in_proj.bias": "mixer.in_proj.bias",
        "mixer.conv.weight": "mixer.conv1d.weight",
        "mixer.conv.bias": "mixer.conv1d.bias",
        "mixer.recurrence.A_log": "mixer.A_log",
        "mixer.recurrence.dt_bias": "mixer.dt_bias",
        "mixer.D": "mixer.D",
        "mixer.norm.weight": "mixer.norm.weight",
        "mixer.out_proj.weight": "mixer.out_proj.weight",
        "mixer.out_proj.bias": "mixer.out_proj.bias",
    }
    return {
        "embedding.weight": f"{prefix}backbone.{embedding}.weight",
        **{f"blocks.{{}}.{path}": f"{prefix}backbone.layers.{{}}.{name}" for path, name in layer.items()},
        "norm.weight": f"{prefix}backbone.norm_f.weight",
        "head.weight": f"{prefix}lm_head.weight",
    }


_FILE_SHAPES = {"blocks.{}.mixer.conv.weight": insert_axis, "blocks.{}.mixer.D": flatten}

_HF = Dialect(
    name="hf",
    config_file="config.json",
    weight_files=(
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
    matches=lambda content: content.get("model_type") == "mamba2",
    read_config=_read_hf,
    write_config=_write_hf,
    names=_names("embeddings"),
    file_shapes=_FILE_SHAPES,
    aliases={"backbone.embedding.weight": "backbone.embeddings.weight"},
    copies={"lm_head.weight": "backbone.embeddings.weight"},
)

_STATE_SPACES = Dialect(
    name="state-spaces",
    config_file="config.json",
    weight_files=("pytorch_model.bin", "model.safetensors"),
    matches=lambda content: "d_model" in content and "n_layer" in content and "model_type" not in content,
    read_config=_read_state_spaces,
    write_config=_write_state_spaces,
    names=_names("embedding"),
    file_shapes=_FILE_SHAPES,
    copies={"lm_head.weight": "backbone.embedding.weight"},
    writes_copies=True,
)

_MISTRAL = Dialect(
    name="mistral",
    config_file="params.json",
    weight_files=("consolidated.safetensors",),
    matches=lambda content: "dim" in content and content.get("model_type") == "mamba",
    read_config=_read_mistral,
    names=_names("embedding", prefix="model."),
    file_shapes=_FILE_SHAPES,
    copies={"model.lm_head.weight": "model.backbone.embedding.weight"},
)

ARCHITECTURE = Architecture(name="mamba2", model=Mamba2, dialects=(_HF, _STATE_SPACES, _MISTRAL))
