"""Bamba: Mamba-2, and attention with partly rotated heads in some of the layers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ssmkit
from ssmkit.checkpoint import Kind, Source, items, only, optional, whole

from .._config import FOLLOWS, AbstractCheckedConfig, above_0
from .._hf_formats import written_limit
from . import _mamba2_keys, _names, _rope
from ._family import described, family, layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class BambaConfig(AbstractCheckedConfig):
    """The configuration of a Bamba model, under the key names of HF transformers' `BambaConfig`.

    **Arguments:**

    - `vocab_size`, `hidden_size`, `num_hidden_layers`, `tie_word_embeddings`, `bos_token_id`, `eos_token_id`,
        `pad_token_id`: as `ssmkit.LanguageModelConfig`.
    - `attn_layer_indices`: the indices of the layers of attention; the others are Mamba-2.
    - `mamba_n_heads`, `mamba_d_head`, `mamba_n_groups`, `mamba_d_state`, `mamba_d_conv`, `mamba_expand`,
        `mamba_chunk_size`, `mamba_conv_bias`, `mamba_proj_bias`, `time_step_limit`: the Mamba-2 layers, as
        `Mamba2Mixer`. `mamba_d_head` follows from other sizes where it is left out or `"auto"`.
    - `num_attention_heads`, `num_key_value_heads`, `head_dim`, `rope_theta`, `rope_scaling`, `partial_rotary_factor`:
        the attention layers, as `ssmkit.AttentionMixer`.
    - `attention_bias`: whether all their projections have biases.
    - `intermediate_size`, `mlp_bias`: the width of the MLPs' hidden layers, and whether the MLPs have biases.
    - `rms_norm_eps`: the epsilon of every norm.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    vocab_size: int = 128000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    bos_token_id: int | tuple[int, ...] | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | tuple[int, ...] | None = 0
    attn_layer_indices: tuple[int, ...] | None = None
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    partial_rotary_factor: float = 0.5
    attention_bias: bool = False
    mlp_bias: bool = False
    mamba_n_heads: int = 128
    mamba_d_head: int = FOLLOWS
    mamba_n_groups: int = 1
    mamba_d_state: int = 256
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_chunk_size: int = 256
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: tuple[float, float] = (0.0, math.inf)

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        numbers = ("rms_norm_eps", "rope_theta", "partial_rotary_factor")
        own = {"attn_layer_indices": optional(items(whole)), "rope_scaling": _rope.scaling}
        return _mamba2_keys.kinds() | own | dict.fromkeys(numbers, above_0)

    def implied(self) -> dict[str, Any]:
        """The sizes that follow from others."""
        return _mamba2_keys.implied(self) | {"num_key_value_heads": self.num_attention_heads}

    def contradictions(self) -> list[str]:
        """Messages if sizes do not fit, or there are not so many layers."""
        wrong, layers = _mamba2_keys.contradictions(self), self.num_hidden_layers
        if any(index >= layers for index in self.attn_layer_indices or ()):
            wrong.append(f"`attn_layer_indices` must be below `num_hidden_layers` = {layers}")
        return wrong

    @property
    def layers(self) -> tuple[str, ...]:
        """The kind of every layer: `"mamba"` or `"attention"`."""
        attention = self.attn_layer_indices or ()
        return tuple("attention" if i in attention else "mamba" for i in range(self.num_hidden_layers))


def _description(config: BambaConfig) -> ssmkit.LanguageModelConfig:
    attention = """num_heads=num_attention_heads num_kv_heads=num_key_value_heads head_dim rope_theta
        partial_rotary_factor rope_scaling use_bias=attention_bias use_output_bias=attention_bias"""
    mixers = {"mamba": _mamba2_keys.mamba2_layer(config), "attention": layer("attention", config, attention)}
    mlp = layer("gated_mlp", config, "intermediate_size use_bias=mlp_bias")
    layers = [each for kind in config.layers for each in (mixers[kind], mlp)]
    return described(config, layers=layers, norm_eps=config.rms_norm_eps)


def _all_names(config: BambaConfig) -> dict[str, Source]:
    mixers = {
        "mamba": ("mamba", _names.mamba2(config.mamba_d_conv)),
        "attention": ("self_attn", _names.attention()),
    }
    mlp, norms = ("feed_forward", _names.gated_mlp()), ("input_layernorm", "pre_ff_layernorm")
    layers = _names.two_per_layer([(mixers[kind], mlp) for kind in config.layers], norms=norms)
    return _names.ends(norm="model.final_layernorm") | layers


def _written(config: BambaConfig) -> dict[str, Any]:
    """As for `family`. HF transformers reads the share of rotated features nowhere but in `rope_parameters`."""
    limit = written_limit(config.time_step_limit)
    own = {"rope_parameters": _rope.table(config), "partial_rotary_factor": None, "rope_scaling": None}
    return own | {"time_step_limit": limit}


ARCHITECTURE = family(
    BambaConfig,
    model_type="bamba",
    hf_class="BambaForCausalLM",
    description=_description,
    names=_all_names,
    spelled=_rope.flat,
    written=_written,
    only={"hidden_act": only("silu", "swish")},
    dead=("attn_rotary_emb", "time_step_floor", "time_step_max", "time_step_min", "z_loss_coefficient"),
)
