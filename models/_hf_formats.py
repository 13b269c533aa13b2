"""The common part of HF transformers' file formats for Mamba and Mamba-2."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ssmkit.checkpoint import (
    CheckpointError,
    Dialect,
    Key,
    boolean,
    factor,
    number,
    only,
    positive,
    read_keys,
    token_ids,
    unknown_keys,
    write_keys,
)

from ._mamba_family import AbstractMambaConfig, padded
from ._mamba_family_formats import Config, Read, Write, made, names
from ._unsupported_keys import UNSUPPORTED


HF_KEYS = {
    **UNSUPPORTED,
    "expand": Key(factor, "expand", 2),
    "conv_kernel": Key(positive, "conv_kernel", 4),
    "use_bias": Key(boolean, "use_bias", False),
    "use_conv_bias": Key(boolean, "use_conv_bias", True),
    "hidden_act": Key(only("silu", "swish"), "hidden_act", "silu"),
    "rms_norm": Key(only(True), default=True),
    "layer_norm_epsilon": Key(number, "layer_norm_epsilon", 1e-5),
    "residual_in_fp32": Key(boolean, "residual_in_fp32", True),
    "time_step_min": Key(number, "time_step_min", 0.001),
    "time_step_max": Key(number, "time_step_max", 0.1),
    "time_step_floor": Key(number, "time_step_floor", 1e-4),
}

# Keys about the making of the file, the initialisation of weights, and the form of outputs.
HF_DEAD = frozenset(
    """
    _attn_implementation_autoset _name_or_path architectures auto_map chunk_size_feed_forward dtype id2label
    initializer_range is_decoder is_encoder_decoder label2id model_type output_attentions output_hidden_states
    problem_type rescale_prenorm_residual return_dict time_step_init_scheme time_step_scale torch_dtype torchscript
    transformers_version use_cache
    """.split()
)

HF_WEIGHT_FILES = tuple(
    name for weights in ("model.safetensors", "pytorch_model.bin") for name in (weights, f"{weights}.index.json")
)

# Keys with the only value that HF's models support.
HF_ONLY: dict[str, Any] = {"rms_norm": True, "d_intermediate": 0}


def hf_keys(
    *, vocab_size: int, hidden_size: int, layers: int, state_size: int, tied: bool, tokens: tuple[int, int, int]
) -> dict[str, Key]:
    """The keys whose defaults differ between HF's classes; `tokens` are the ids of bos, eos and pad."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "vocab_size": Key(positive, "vocab_size", vocab_size),
        "hidden_size": Key(positive, "hidden_size", hidden_size),
        "num_hidden_layers": Key(positive, "num_hidden_layers", layers),
        "state_size": Key(positive, "state_size", state_size),
        "tie_word_embeddings": Key(boolean, "tie_word_embeddings", tied),
        **{name: Key(token_ids, name, token) for name, token in zip(names, tokens, strict=True)},
    }


PADDING_KEYS = {
    "unpadded_vocab_size": Key(positive, "vocab_size"),
    "pad_vocab_size_multiple": Key(positive, "pad_vocab_size_multiple"),
}


def written_limit(limit: tuple[float, float]) -> list[Any] | None:
    """The value of `time_step_limit` in a file; `None`, to leave the key out, for the usual default of no limits."""
    if limit == (0.0, math.inf):
        return None
    return [limit[0], {"__float__": "Infinity"} if math.isinf(limit[1]) else limit[1]]  # JSON has no infinity


def _padding(content: Mapping[str, Any]) -> dict[str, int]:
    """The fields that our own two keys set, if these keys are consistent with the `vocab_size` of the file.

    Other software does not know these keys: it keeps them when it resizes the vocabulary. HF's own old files have the
    second key too, without a meaning.
    """
    try:
        fields = read_keys(content, PADDING_KEYS)
    except CheckpointError:
        return {}
    return fields if padded(**fields) == content.get("vocab_size") else {}


def _unknown_hf(content: Mapping[str, Any], keys: Mapping[str, Key], dead: Collection[str]) -> dict[str, Any]:
    """As `Dialect.unknown_keys`; a key for a padding that the file does not have counts as unknown."""
    unread = {"unpadded_vocab_size"} if not _padding(content) else set()
    return unknown_keys(content, keys, {*dead, *PADDING_KEYS} - unread)


def read_hf(build: Callable[..., Config], content: Mapping[str, Any], keys: Mapping[str, Key]) -> Config:
    """The configuration in HF's `content`, whose `vocab_size` counts padding rows."""
    return made(build, read_keys(content, keys) | _padding(content))


def write_hf(
    config: AbstractMambaConfig, keys: Mapping[str, Key], *, architecture: str, model_type: str, dtype: str
) -> dict[str, Any]:
    """Write the content that `read_hf` reads."""
    content = {"architectures": [architecture], "model_type": model_type, "dtype": dtype} | write_keys(config, keys)
    if config.padded_vocab_size != config.vocab_size:
        content |= write_keys(config, PADDING_KEYS) | {"vocab_size": config.padded_vocab_size}
    return content


def hf(
    layer: Mapping[str, str],
    models: Mapping[str, Mapping[str, Key]],
    dead: Collection[str],
    read_config: Read,
    write_config: Write,
) -> Dialect:
    """Build HF's dialect.

    **Arguments:**

    - `layer`: as for `names`.
    - `models`: the known keys, by `model_type`.
    - `dead`: the keys that never change the model.
    - `read_config`, `write_config`: as for `Dialect`.
    """
    return Dialect(
        name="hf",
        config_file="config.json",
        weight_files=HF_WEIGHT_FILES,
        matches=lambda content: content.get("model_type") in tuple(models),
        read_config=read_config,
        unknown_keys=lambda content: _unknown_hf(content, models[content["model_type"]], dead),
        write_config=write_config,
        names=names(layer, "embeddings"),
        aliases={"backbone.embedding.weight": "backbone.embeddings.weight"},
        base="backbone.",
        copies={"lm_head.weight": "backbone.embeddings.weight"},
    )
