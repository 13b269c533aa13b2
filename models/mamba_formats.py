"""The file formats of Mamba, as data.

- `hf`: HF transformers' `MambaForCausalLM` and `FalconMambaForCausalLM`. Keys that a file leaves out have the defaults
    of HF's classes. `vocab_size` counts padding rows; three of our own keys, which HF ignores, store their number and a
    chunk size.
- `state-spaces`: models of the mamba_ssm package. Keys that a file leaves out have that package's defaults. This format
    has no keys for the ids of special tokens or for a chunk size.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ssmkit.checkpoint import Architecture, Key, number, only, optional, positive, without

from ._config import size_or_auto
from ._hf_formats import HF_DEAD, HF_KEYS, HF_ONLY, hf, hf_keys, read_hf, write_hf
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
from .mamba import Mamba, MambaConfig


_HF_KEYS = {
    **hf_keys(vocab_size=50280, hidden_size=768, layers=32, state_size=16, tied=True, tokens=(0, 0, 0)),
    **HF_KEYS,
    "intermediate_size": Key(optional(positive), "intermediate_size", None),
    "time_step_rank": Key(size_or_auto, "time_step_rank", "auto"),
    "chunk_size": Key(optional(positive), "chunk_size", None),
}
_HF_MODELS = {  # the keys of each `model_type`
    "mamba": _HF_KEYS | {"mixer_rms_eps": Key(without("only the `model_type` falcon_mamba has it"), default=None)},
    "falcon_mamba": _HF_KEYS | {"mixer_rms_eps": Key(number, "mixer_rms_eps", 1e-6)},
}
_HF_CLASSES = {"mamba": "MambaForCausalLM", "falcon_mamba": "FalconMambaForCausalLM"}
# Keys for HF's implementation of the scan and, in files converted from the other format, keys of that format.
_HF_DEAD = HF_DEAD | frozenset(
    """
    use_associative_scan use_falcon_mambapy use_mambapy d_inner d_model fused_add_norm n_layer ssm_cfg
    """.split()
)

_OF_MAMBA2 = without("only the layer `Mamba2` has it, which `ssm_cfg` does not name")
_STATE_SPACES_KEYS = {
    **STATE_SPACES_KEYS,
    **{
        f"ssm_cfg.{name}": Key(_OF_MAMBA2, default=None)
        for name in ("headdim", "ngroups", "d_ssm", "rmsnorm", "norm_before_gate", "D_has_hdim", "dt_limit")
    },
    "ssm_cfg.layer": Key(only("Mamba1"), default="Mamba1"),
    "ssm_cfg.d_state": Key(positive, "state_size", 16),
    "ssm_cfg.dt_rank": Key(size_or_auto, "time_step_rank", "auto"),
}
_STATE_SPACES_DEAD = (*STATE_SPACES_DEAD, *STACK_DEAD, "ssm_cfg.dt_init", "ssm_cfg.dt_scale", "ssm_cfg.use_fast_path")


def _read_hf(content: Mapping[str, Any]) -> MambaConfig:
    """As `Dialect.read_config`."""
    return read_hf(MambaConfig, content, _HF_MODELS[content["model_type"]])


def _write_hf(config: MambaConfig, dtype: str) -> dict[str, Any]:
    """As `Dialect.write_config`."""
    refuse_unless(config, "hf", **HF_ONLY)
    model_type = "mamba" if config.mixer_rms_eps is None else "falcon_mamba"
    keys, architecture = _HF_MODELS[model_type], _HF_CLASSES[model_type]
    content = write_hf(config, keys, architecture=architecture, model_type=model_type, dtype=dtype)
    if config.chunk_size is None:
        del content["chunk_size"]
    return content


def _read_state_spaces(content: Mapping[str, Any]) -> MambaConfig:
    """As `Dialect.read_config`."""
    return made(MambaConfig, read_state_spaces(content, _STATE_SPACES_KEYS))


def _write_state_spaces(config: MambaConfig, dtype: str) -> dict[str, Any]:
    """As `Dialect.write_config`."""
    implied = dataclasses.replace(config, intermediate_size=None, time_step_rank=None)
    refuse_unless(
        config,
        "state-spaces",
        layer_norm_epsilon=1e-5,
        mixer_rms_eps=None,
        intermediate_size=implied.intermediate_size,
    )
    content = write_state_spaces(config, _STATE_SPACES_KEYS)
    del content["attn_cfg"]
    if config.time_step_rank == implied.time_step_rank:
        del content["ssm_cfg"]["dt_rank"]
    return content


_LAYER = {
    "mixer.x_proj.weight": "mixer.x_proj.weight",
    "mixer.dt_proj.weight": "mixer.dt_proj.weight",
    "mixer.recurrence.dt_bias": "mixer.dt_proj.bias",
}

_HF = hf(_LAYER, _HF_MODELS, _HF_DEAD, _read_hf, _write_hf)
_STATE_SPACES = state_spaces(
    stack_of("Mamba1"),
    names(_LAYER, "embedding"),
    _STATE_SPACES_KEYS,
    _STATE_SPACES_DEAD,
    _read_state_spaces,
    _write_state_spaces,
)


ARCHITECTURE = Architecture(
    name="mamba", config=MambaConfig, model=Mamba, dialects=(_HF, _STATE_SPACES), layers="num_hidden_layers"
)
