"""LFM2 (arXiv 2511.23404): gated short convolutions, and attention with norms of queries and keys."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import ssmkit
from ssmkit.checkpoint import Kind, Reshape, Source, items, only

from .._config import FOLLOWS, AbstractCheckedConfig, above_0
from . import _names, _rope
from ._family import Content, described, family, layer, renamed


MLP: _names.Part = "feed_forward", _names.gated_mlp("w1", "w3", "w2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lfm2Config(AbstractCheckedConfig):
    """The configuration of an LFM2 model, under the key names of HF transformers' `Lfm2Config`.

    **Arguments:**

    - `vocab_size`, `hidden_size`, `num_hidden_layers`, `tie_word_embeddings`, `bos_token_id`, `eos_token_id`,
        `pad_token_id`: as `ssmkit.LanguageModelConfig`.
    - `layer_types`: for each layer `"conv"` or `"full_attention"`; all are attention where it is left out.
    - `intermediate_size`: the width of the MLPs' hidden layers. With `block_auto_adjust_ff_dim` it is two thirds of
        that, times `block_ffn_dim_multiplier`, rounded up to a multiple of `block_multiple_of`.
    - `num_attention_heads`, `num_key_value_heads`: the heads of the attention layers.
    - `rope_theta`, `rope_scaling`: as `ssmkit.AttentionMixer`.
    - `conv_L_cache`, `conv_bias`: the taps of the convolutions, and whether their layers have biases.
    - `norm_eps`: the epsilon of every norm.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    vocab_size: int = 65536
    hidden_size: int = 2560
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    bos_token_id: int | tuple[int, ...] | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | tuple[int, ...] | None = 0
    rope_theta: float = 1000000.0
    rope_scaling: Mapping[str, Any] | None = None
    conv_bias: bool = False
    conv_L_cache: int = 3
    block_multiple_of: int = 256
    block_ffn_dim_multiplier: int | float = 1.0
    block_auto_adjust_ff_dim: bool = True
    layer_types: tuple[str, ...] = FOLLOWS

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        return {
            "layer_types": items(only("conv", "full_attention")),
            "norm_eps": above_0,
            "rope_theta": above_0,
            "rope_scaling": _rope.scaling,
        }

    def implied(self) -> dict[str, Any]:
        """The layers, if they are left out."""
        return {"layer_types": ("full_attention",) * self.num_hidden_layers}

    def contradictions(self) -> list[str]:
        """A message if there is not one type for each layer."""
        return _names.one_per_layer("layer_types", self.layer_types, self.num_hidden_layers)

    @property
    def mlp_size(self) -> int:
        """The width of the MLPs' hidden layers."""
        size = self.intermediate_size
        if self.block_auto_adjust_ff_dim:
            size = int(self.block_ffn_dim_multiplier * int(2 * size / 3))
            size = self.block_multiple_of * math.ceil(size / self.block_multiple_of)
        return size


def mixers(config: Any) -> dict[str, Any]:
    """The table of each kind of layer, as in `ssmkit.LanguageModelConfig`. `Lfm2MoeConfig` has the same keys."""
    attention = "num_heads=num_attention_heads num_kv_heads=num_key_value_heads rope_theta rope_scaling norm_eps"
    return {
        "conv": layer("short_conv", config, "conv_kernel=conv_L_cache use_bias=conv_bias"),
        "full_attention": layer("attention", config, attention, qk_norm=True),
    }


def mixer_parts(config: Any) -> dict[str, _names.Part]:
    """The arrays of each kind of layer. `Lfm2MoeConfig` has the same keys."""
    conv = _names.linears("in_proj", "out_proj") | {
        "conv.weight": ("conv.weight", Reshape((-1, 1, config.conv_L_cache))),
        "conv.bias": "conv.bias",
    }
    attention = _names.attention(q_norm="q_layernorm", k_norm="k_layernorm", o_proj="out_proj")
    return {"conv": ("conv", conv), "full_attention": ("self_attn", attention)}


def all_names(layers: Iterable[tuple[_names.Part, _names.Part]]) -> dict[str, Source]:
    """As for `family`, for the mixer and the MLP of each layer."""
    return _names.ends(norm="model.embedding_norm") | _names.two_per_layer(layers, norms=("operator_norm", "ffn_norm"))


def _description(config: Lfm2Config) -> ssmkit.LanguageModelConfig:
    kinds, mlp = mixers(config), {"mixer": "gated_mlp", "intermediate_size": config.mlp_size}
    return described(config, layers=[each for kind in config.layer_types for each in (kinds[kind], mlp)])


def _all_names(config: Lfm2Config) -> dict[str, Source]:
    parts = mixer_parts(config)
    return all_names((parts[kind], MLP) for kind in config.layer_types)


def spelled(content: Content) -> Content:
    """Older files list the layers of attention, and have other names for two keys."""
    others = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}
    content = renamed(_rope.flat(content), others)
    attention = content.pop("full_attn_idxs", None)
    if content.get("layer_types") is None and isinstance(attention, list):
        layers = range(content.get("num_hidden_layers", Lfm2Config.num_hidden_layers))
        content["layer_types"] = ["full_attention" if i in attention else "conv" for i in layers]
    return content


ARCHITECTURE = family(
    Lfm2Config,
    model_type="lfm2",
    hf_class="Lfm2ForCausalLM",
    description=_description,
    names=_all_names,
    spelled=spelled,
    dead="""
        block_dim block_mlp_init_scale block_norm_eps block_out_init_scale block_use_swiglu block_use_xavier_init
        conv_dim conv_dim_out conv_use_xavier_init num_heads theta use_pos_enc
    """.split(),
)
