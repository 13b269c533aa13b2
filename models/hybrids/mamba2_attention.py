"""The Mamba-2 language model with layers of attention (arXiv 2405.21060, section 9.2.3)."""

import dataclasses
from typing import Any

import ssmkit
from ssmkit.checkpoint import Kind, integer, items, whole

from .._config import FOLLOWS, above_0, or_none
from ..mamba2_model import MIXER_KEYS, AbstractMamba2Config
from ._family import described


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2AttentionConfig(AbstractMamba2Config):
    """The configuration of a Mamba-2 language model of which some layers are attention.

    **Arguments:** those of `Mamba2Config`, and

    - `attention_layers`: the indices of the layers that are attention.
    - `num_attention_heads`, `num_key_value_heads`, `attention_head_dim`: their heads, as `num_heads`, `num_kv_heads`
        and `head_dim` of `ssmkit.AttentionMixer`.
    - `attention_conv_kernel`: the taps of the convolution of queries, keys and values; 0 for no convolution.
    - `attention_bias`, `attention_output_bias`: whether the projections have biases.
    - `attention_scale`: as `scale` of `ssmkit.AttentionMixer`.
    - `rotary_dim`, `rope_theta`: the number of rotated features of each head, and the base of the wavelengths.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    attention_layers: tuple[int, ...]
    num_attention_heads: int
    num_key_value_heads: int = FOLLOWS
    attention_head_dim: int = FOLLOWS
    attention_conv_kernel: int = 0
    attention_bias: bool = True
    attention_output_bias: bool = True
    attention_scale: float | None = None
    rotary_dim: int = 0
    rope_theta: float = 10000.0

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        from_0 = integer(0, 2**31 - 1)
        own = {"attention_layers": items(whole), "attention_conv_kernel": from_0, "rotary_dim": from_0}
        return super().kinds() | own | {"attention_scale": or_none(above_0), "rope_theta": above_0}

    def implied(self) -> dict[str, Any]:
        """The sizes that follow from others."""
        groups, dim = self.num_attention_heads, self.hidden_size // self.num_attention_heads
        return self.implied_by_mixer() | {"num_key_value_heads": groups, "attention_head_dim": dim}

    def contradictions(self) -> list[str]:
        """Messages if a layer is not there, or if sizes do not fit."""
        last = self.num_hidden_layers - 1
        wrong = [f"`attention_layers` must be in [0, {last}], got {i}" for i in self.attention_layers if i > last]
        if self.rotary_dim % 2 or self.rotary_dim > self.attention_head_dim:
            wrong.append(
                f"`rotary_dim` must be even and at most `attention_head_dim` = {self.attention_head_dim}, got "
                f"{self.rotary_dim}"
            )
        return self.contradictions_of_mixer() + wrong


def description(config: Mamba2AttentionConfig) -> ssmkit.LanguageModelConfig:
    """The model of a configuration as data."""
    eps, rotary, dim = config.layer_norm_epsilon, config.rotary_dim, config.attention_head_dim
    mamba = {name: getattr(config, name) for name in MIXER_KEYS} | {"mixer": "mamba2", "norm_eps": eps}
    attention = {
        "mixer": "attention",
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": dim,
        "rope_theta": config.rope_theta if rotary else None,
        "partial_rotary_factor": min(1.0, (rotary + 0.5) / dim),  # of which the mixer rounds `rotary` features down
        "scale": config.attention_scale,
        "use_bias": config.attention_bias,
        "use_output_bias": config.attention_output_bias,
        "conv_kernel": config.attention_conv_kernel or None,
    }
    mlp = [{"mixer": "mamba_mlp", "intermediate_size": config.d_intermediate}] if config.d_intermediate else []
    layers = [attention if i in config.attention_layers else mamba for i in range(config.num_hidden_layers)]
    return described(
        config,
        layers=[part for layer in layers for part in (layer, *mlp)],
        norm="rms_norm" if config.rms_norm else "layer_norm",
        norm_eps=eps,
        residual_in_fp32=config.residual_in_fp32,
        pad_vocab_size_multiple=config.pad_vocab_size_multiple,
    )
