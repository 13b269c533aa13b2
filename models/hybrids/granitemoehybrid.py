"""Granite 4.0: Mamba-2 and attention, each followed by an MLP or a mixture of experts, with constant multipliers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ssmkit
from ssmkit.checkpoint import Kind, Source, items, only, whole

from .._config import FOLLOWS, AbstractCheckedConfig, above_0
from .._hf_formats import written_limit
from . import _mamba2_keys, _names, _rope
from ._family import Content, described, family, hub_layers, layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteMoeHybridConfig(AbstractCheckedConfig):
    """The configuration of a Granite 4.0 model, under the key names of HF transformers' `GraniteMoeHybridConfig`.

    **Arguments:**

    - `vocab_size`, `hidden_size`, `num_hidden_layers`, `tie_word_embeddings`, `residual_multiplier`,
        `embedding_multiplier`, `bos_token_id`, `eos_token_id`, `pad_token_id`: as `ssmkit.LanguageModelConfig`.
    - `logits_scaling`: the logits are divided by this number.
    - `layer_types`: for each layer `"mamba"` or `"attention"`; all are Mamba-2 where it is left out.
    - `mamba_n_heads`, `mamba_d_head`, `mamba_n_groups`, `mamba_d_state`, `mamba_d_conv`, `mamba_expand`,
        `mamba_chunk_size`, `mamba_conv_bias`, `mamba_proj_bias`, `time_step_limit`: the Mamba-2 layers, as
        `Mamba2Mixer`. `mamba_d_head` follows from other sizes where it is left out or `"auto"`.
    - `num_attention_heads`, `num_key_value_heads`, `head_dim`, `attention_bias`: the attention layers.
    - `attention_multiplier`: the factor of the products of queries and keys, in place of `head_dim ** -0.5`.
    - `position_embedding_type`: `"rope"` for rotary positions of base `rope_theta` and `rope_scaling`; or else none.
    - `shared_intermediate_size`: the width of the hidden layer of the MLP that follows every mixer.
    - `num_local_experts`, `num_experts_per_tok`, `intermediate_size`: the experts beside that MLP (there may be none),
        how many of them each token uses, and the width of their hidden layers.
    - `rms_norm_eps`: the epsilon of every norm.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = FOLLOWS
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    bos_token_id: int | tuple[int, ...] | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | tuple[int, ...] | None = None
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    attention_bias: bool = False
    embedding_multiplier: int | float = 1.0
    logits_scaling: int | float = 1.0
    residual_multiplier: int | float = 1.0
    attention_multiplier: int | float = 1.0
    shared_intermediate_size: int = 1024
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    position_embedding_type: str | None = None
    layer_types: tuple[str, ...] = FOLLOWS
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
        return _mamba2_keys.kinds() | {
            "rms_norm_eps": above_0,
            "rope_theta": above_0,
            "rope_scaling": _rope.scaling,
            "num_local_experts": whole,
            "num_experts_per_tok": whole,
            "position_embedding_type": only("rope", "nope", None),
            "layer_types": items(only("mamba", "attention")),
        }

    def implied(self) -> dict[str, Any]:
        """The sizes that follow from others, and the layers if they are left out."""
        return _mamba2_keys.implied(self) | {
            "num_key_value_heads": self.num_attention_heads,
            "layer_types": ("mamba",) * self.num_hidden_layers,
        }

    def contradictions(self) -> list[str]:
        """Messages if sizes do not fit, or there is not one type for each layer."""
        wrong = _names.one_per_layer("layer_types", self.layer_types, self.num_hidden_layers)
        return _mamba2_keys.contradictions(self) + wrong


def _description(config: GraniteMoeHybridConfig) -> ssmkit.LanguageModelConfig:
    attention = """num_heads=num_attention_heads num_kv_heads=num_key_value_heads head_dim scale=attention_multiplier
        rope_scaling use_bias=attention_bias use_output_bias=attention_bias"""
    theta = config.rope_theta if config.position_embedding_type == "rope" else None
    mixers = {
        "mamba": _mamba2_keys.mamba2_layer(config),
        "attention": layer("attention", config, attention, rope_theta=theta),
    }
    mlp = layer("gated_mlp", config, "intermediate_size=shared_intermediate_size")
    if config.num_local_experts > 0:
        experts = "num_experts=num_local_experts num_experts_per_tok intermediate_size shared_intermediate_size"
        mlp = layer("moe", config, experts)
    layers, scale = [each for kind in config.layer_types for each in (mixers[kind], mlp)], 1 / config.logits_scaling
    return described(config, layers=layers, norm_eps=config.rms_norm_eps, logit_multiplier=scale)


def _all_names(config: GraniteMoeHybridConfig) -> dict[str, Source]:
    mixers = {
        "mamba": ("mamba", _names.mamba2(config.mamba_d_conv)),
        "attention": ("self_attn", _names.attention()),
    }
    mlp = "shared_mlp", _names.fused_gated_mlp("input_linear", "output_linear", config.shared_intermediate_size)
    if config.num_local_experts > 0:
        sizes = "block_sparse_moe", config.intermediate_size
        mlp = "", _names.fused_experts(*sizes) | _names.within("shared", *mlp)
    layers = [(mixers[kind], mlp) for kind in config.layer_types]
    return _names.ends() | _names.two_per_layer(layers, norms=("input_layernorm", "post_attention_layernorm"))


def _spelled(content: Content) -> Content:
    """As for `family`."""
    content = _rope.flat(content)
    if content.get("layer_types") is None and "layers_block_type" in content:
        content["layer_types"] = content.pop("layers_block_type")
    return hub_layers(content, "layer_types")


ARCHITECTURE = family(
    GraniteMoeHybridConfig,
    model_type="granitemoehybrid",
    hf_class="GraniteMoeHybridForCausalLM",
    description=_description,
    names=_all_names,
    spelled=_spelled,
    written=lambda config: {"time_step_limit": written_limit(config.time_step_limit)},
    only={"hidden_act": only("silu", "swish"), "normalization_function": only("rmsnorm")},
    dead=("init_method",),
)
