"""The file formats of Mamba-2, as data.

- `hf`: HF transformers' `Mamba2ForCausalLM`. Keys that a file leaves out have the defaults of HF's class, which are
    Codestral's. `vocab_size` counts padding rows; two of our own keys, which HF ignores, store their number.
- `state-spaces`: Mamba-2 models of the mamba_ssm package. Keys that a file leaves out have that package's defaults.
    This format has no keys for the ids of special tokens.
- `mistral`: Mistral's Mamba-Codestral. Read only.
"""

import math
from collections.abc import Mapping
from typing import Any

from ssmkit.checkpoint import (
    Architecture,
    Dialect,
    Key,
    boolean,
    only,
    optional,
    pair,
    positive,
    read_keys,
    unknown_keys,
)

from ._hf_formats import HF_DEAD, HF_KEYS, HF_ONLY, hf, hf_keys, read_hf, write_hf, written_limit
from ._mamba_family_formats import made, names, refuse_unless
from ._state_spaces_formats import (
    STACK_DEAD,
    STATE_SPACES_DEAD,
    STATE_SPACES_KEYS,
    read_state_spaces,
    stack_of,
    state_spaces,
    write_state_spaces,
)
from ._unsupported_keys import UNSUPPORTED
from .mamba2_model import AbstractMamba2Config, Mamba2, Mamba2Config


_UNBOUNDED = (0.0, math.inf)

_HF_KEYS = {
    **hf_keys(vocab_size=32768, hidden_size=4096, layers=64, state_size=128, tied=False, tokens=(0, 2, 1)),
    **HF_KEYS,
    "head_dim": Key(positive, "head_dim", 64),
    "num_heads": Key(positive, "num_heads", 128),
    "n_groups": Key(positive, "n_groups", 8),
    "chunk_size": Key(positive, "chunk_size", 256),
    "time_step_limit": Key(pair, "time_step_limit", _UNBOUNDED),
}
# Files of old versions of transformers have these keys, but its code never read them.
_HF_DEAD = HF_DEAD | {"intermediate_size", "norm_before_gate", "time_step_rank"}

MAMBA2_KEYS = {
    **STATE_SPACES_KEYS,
    "ssm_cfg.layer": Key(only("Mamba2"), default="Mamba1"),
    "ssm_cfg.d_state": Key(positive, "state_size", 128),
    "ssm_cfg.headdim": Key(positive, "head_dim", 64),
    "ssm_cfg.ngroups": Key(positive, "n_groups", 1),
    "ssm_cfg.chunk_size": Key(positive, "chunk_size", 256),
    "ssm_cfg.D_has_hdim": Key(boolean, "D_has_hdim", False),
    "ssm_cfg.dt_limit": Key(pair, "time_step_limit", _UNBOUNDED),
    "ssm_cfg.activation": Key(only("silu", "swish"), default="silu"),
    "ssm_cfg.d_ssm": Key(optional(positive), "d_ssm", None),
    "ssm_cfg.rmsnorm": Key(boolean, "rmsnorm", True),
    "ssm_cfg.norm_before_gate": Key(boolean, "norm_before_gate", False),
}
MAMBA2_DEAD = (
    *STATE_SPACES_DEAD,
    "ssm_cfg.A_init_range",
    "ssm_cfg.conv_init",
    "ssm_cfg.process_group",
    "ssm_cfg.sequence_parallel",
    "ssm_cfg.use_mem_eff_path",
)

_MISTRAL_KEYS = {
    **UNSUPPORTED,
    "dim": Key(positive, "hidden_size"),
    "n_layers": Key(positive, "num_hidden_layers"),
    "vocab_size": Key(positive, "vocab_size"),
    "n_groups": Key(positive, "n_groups"),
    "pad_vocab_size_multiple": Key(positive, "pad_vocab_size_multiple", 1),
    "tie_embeddings": Key(boolean, "tie_word_embeddings", False),
    "residual_in_fp32": Key(boolean, "residual_in_fp32", True),
    "rms_norm": Key(only(True), default=True),
}
_MISTRAL_DEAD = ("fused_add_norm", "model_type")


def _read_hf(content: Mapping[str, Any]) -> Mamba2Config:
    """As `Dialect.read_config`."""
    return read_hf(Mamba2Config, content, _HF_KEYS)


def _write_hf(config: Mamba2Config, dtype: str) -> dict[str, Any]:
    """As `Dialect.write_config`."""
    whole = config.intermediate_size
    refuse_unless(config, "hf", D_has_hdim=False, d_ssm=whole, rmsnorm=True, norm_before_gate=False, **HF_ONLY)
    content = write_hf(config, _HF_KEYS, architecture="Mamba2ForCausalLM", model_type="mamba2", dtype=dtype)
    del content["time_step_limit"]
    limit = written_limit(config.time_step_limit)
    return content if limit is None else content | {"time_step_limit": limit}


def _read_state_spaces(content: Mapping[str, Any]) -> Mamba2Config:
    """As `Dialect.read_config`."""
    return made(Mamba2Config, read_state_spaces(content, MAMBA2_KEYS))


def _write_state_spaces(config: Mamba2Config, dtype: str) -> dict[str, Any]:
    """As `Dialect.write_config`."""
    return {"attn_layer_idx": []} | write_mamba2(config, MAMBA2_KEYS)


def write_mamba2(config: AbstractMamba2Config, keys: Mapping[str, Key]) -> dict[str, Any]:
    """As `write_state_spaces`, for configurations of layers `Mamba2`."""
    refuse_unless(config, "state-spaces", layer_norm_epsilon=1e-5)
    content = write_state_spaces(config, keys)
    content["ssm_cfg"] = {"layer": "Mamba2"} | content["ssm_cfg"]
    if config.d_ssm == config.intermediate_size:
        del content["ssm_cfg"]["d_ssm"]
    return content


def _read_mistral(content: Mapping[str, Any]) -> Mamba2Config:
    """As `Dialect.read_config`."""
    return made(Mamba2Config, read_keys(content, _MISTRAL_KEYS))


_LAYER = {"mixer.recurrence.dt_bias": "mixer.dt_bias", "mixer.norm.weight": "mixer.norm.weight"}

_HF = hf(_LAYER, {"mamba2": _HF_KEYS}, _HF_DEAD, _read_hf, _write_hf)

_STATE_SPACES = state_spaces(
    stack_of("Mamba2"),
    names(_LAYER, "embedding"),
    MAMBA2_KEYS,
    (*MAMBA2_DEAD, *STACK_DEAD),
    _read_state_spaces,
    _write_state_spaces,
)

_MISTRAL = Dialect(
    name="mistral",
    config_file="params.json",
    weight_files=("consolidated.safetensors",),
    matches=lambda content: "dim" in content and content.get("model_type") == "mamba",
    read_config=_read_mistral,
    unknown_keys=lambda content: unknown_keys(content, _MISTRAL_KEYS, _MISTRAL_DEAD),
    names=names(_LAYER, "embedding", prefix="model."),
    base="model.backbone.",
    copies={"model.lm_head.weight": "model.backbone.embedding.weight"},
)

ARCHITECTURE = Architecture(
    name="mamba2",
    config=Mamba2Config,
    model=Mamba2,
    dialects=(_HF, _STATE_SPACES, _MISTRAL),
    layers="num_hidden_layers",
)
