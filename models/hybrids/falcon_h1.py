"""Falcon-H1 (arXiv 2507.22448): Mamba-2 and attention beside each other in every layer, with constant multipliers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ssmkit
from ssmkit.checkpoint import Kind, Source, items, only

from .._config import FOLLOWS, AbstractCheckedConfig, above_0, finite
from .._hf_formats import written_limit
from . import _mamba2_keys, _names, _rope
from ._family import described, family, layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class FalconH1Config(AbstractCheckedConfig):
    """The configuration of a Falcon-H1 model, under the key names of HF transformers' `FalconH1Config`.

    **Arguments:**

    - `vocab_size`, `hidden_size`, `num_hidden_layers`, `tie_word_embeddings`, `embedding_multiplier`, `bos_token_id`,
        `eos_token_id`, `pad_token_id`: as `ssmkit.LanguageModelConfig`.
    - `lm_head_multiplier`: a factor of the logits.
    - `mamba_d_ssm`: the channels of the Mamba-2 layers; `mamba_expand * hidden_size` when `None`.
    - `mamba_n_heads`, `mamba_d_head`, `mamba_n_groups`, `mamba_d_state`, `mamba_d_conv`, `mamba_chunk_size`,
        `mamba_conv_bias`, `mamba_proj_bias`, `mamba_rms_norm`, `mamba_norm_before_gate`, `time_step_limit`: the Mamba-2
        layers, as `Mamba2Mixer`. `projectors_bias` is whether their output projections have biases.
    - `ssm_in_multiplier`, `ssm_multipliers`, `ssm_out_multiplier`: factors of their input, of what their first
        projection gives ($z$, $x$, $B$, $C$ and $dt$), and of their output.
    - `num_attention_heads`, `num_key_value_heads`, `head_dim`, `rope_theta`, `rope_scaling`, `attention_bias`: the
        attention layers.
    - `attention_in_multiplier`, `key_multiplier`, `attention_out_multiplier`: factors of their input, keys and output.
    - `intermediate_size`, `mlp_bias`, `mlp_multipliers`: the MLPs, as `ssmkit.GatedMLP`.
    - `rms_norm_eps`: the epsilon of every norm.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    vocab_size: int = 128000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int = FOLLOWS
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | tuple[int, ...] | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | tuple[int, ...] | None = 0
    mamba_d_ssm: int | None = 1024
    mamba_n_heads: int = 128
    mamba_d_head: int = FOLLOWS
    mamba_n_groups: int = 1
    mamba_d_state: int = 256
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_chunk_size: int = 256
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    mamba_norm_before_gate: bool = True
    mamba_rms_norm: bool = False
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    projectors_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    lm_head_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    mlp_multipliers: tuple[float, ...] = FOLLOWS
    key_multiplier: float = 1.0
    attention_in_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    ssm_multipliers: tuple[float, ...] = FOLLOWS
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        own = {"mlp_multipliers": items(finite, 2), "ssm_multipliers": items(finite, 5), "rope_scaling": _rope.scaling}
        others = [name for name in cls.__annotations__ if name.endswith("_multiplier")]
        return _mamba2_keys.kinds() | dict.fromkeys(("rms_norm_eps", "rope_theta", *others), above_0) | own

    def implied(self) -> dict[str, Any]:
        """The sizes that follow from others, and multipliers of 1."""
        channels = self.mamba_expand * self.hidden_size
        return {
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.hidden_size // self.num_attention_heads,
            "mamba_d_ssm": channels,
            "mamba_d_head": (self.mamba_d_ssm or channels) // self.mamba_n_heads,
            "mlp_multipliers": (1.0,) * 2,
            "ssm_multipliers": (1.0,) * 5,
        }

    def contradictions(self) -> list[str]:
        """A message if the heads do not make up the channels."""
        heads, size, channels = self.mamba_n_heads, self.mamba_d_head, self.mamba_d_ssm
        said = f"`mamba_n_heads` * `mamba_d_head` must be `mamba_d_ssm` = {channels}, got {heads} * {size}"
        return [] if heads * size == channels else [said]


def _description(config: FalconH1Config) -> ssmkit.LanguageModelConfig:
    mamba = """intermediate_size=mamba_d_ssm use_output_bias=projectors_bias rmsnorm=mamba_rms_norm
        norm_before_gate=mamba_norm_before_gate multipliers=ssm_multipliers"""
    attention = """num_heads=num_attention_heads num_kv_heads=num_key_value_heads head_dim rope_theta rope_scaling
        use_bias=attention_bias use_output_bias=attention_bias"""
    scale = config.key_multiplier * config.head_dim**-0.5
    both = {
        "mixer": "parallel",
        "mixers": [_mamba2_keys.mamba2_layer(config, mamba), layer("attention", config, attention, scale=scale)],
        "in_multipliers": [config.ssm_in_multiplier, config.attention_in_multiplier],
        "out_multipliers": [config.ssm_out_multiplier, config.attention_out_multiplier],
    }
    mlp = layer("gated_mlp", config, "intermediate_size use_bias=mlp_bias multipliers=mlp_multipliers")
    layers, factor = config.num_hidden_layers * [both, mlp], config.lm_head_multiplier
    return described(config, layers=layers, norm_eps=config.rms_norm_eps, logit_multiplier=factor)


def _all_names(config: FalconH1Config) -> dict[str, Source]:
    names = _names.ends(norm="model.final_layernorm")
    for i in range(config.num_hidden_layers):
        both, mlp, layer = f"blocks.{2 * i}", f"blocks.{2 * i + 1}", f"model.layers.{i}"
        names[f"{both}.norm.weight"] = Source(f"{layer}.input_layernorm.weight")
        names[f"{mlp}.norm.weight"] = Source(f"{layer}.pre_ff_layernorm.weight")
        names |= _names.under(f"{both}.mixer.mixers.0", f"{layer}.mamba", _names.mamba2(config.mamba_d_conv))
        names |= _names.under(f"{both}.mixer.mixers.1", f"{layer}.self_attn", _names.attention())
        names |= _names.under(f"{mlp}.mixer", f"{layer}.feed_forward", _names.gated_mlp())
    return names


ARCHITECTURE = family(
    FalconH1Config,
    model_type="falcon_h1",
    hf_class="FalconH1ForCausalLM",
    description=_description,
    names=_all_names,
    spelled=_rope.flat,
    written=lambda config: {"time_step_limit": written_limit(config.time_step_limit)},
    only={"hidden_act": only("silu", "swish"), "partial_rotary_factor": only(1, 1.0)},
    dead=("mamba_use_mlp", "mlp_expansion_factor"),
)
