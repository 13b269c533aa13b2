"""LFM2 with experts (arXiv 2511.23404): the layers of LFM2, most of them with a mixture of experts for the MLP."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ssmkit
from ssmkit.checkpoint import Kind, Source, items, only, whole

from .._config import AbstractCheckedConfig, above_0
from . import _names, _rope, lfm2
from ._family import described, family, layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lfm2MoeConfig(AbstractCheckedConfig):
    """The configuration of an LFM2 model with experts, under the key names of HF transformers' `Lfm2MoeConfig`.

    **Arguments:**

    - `vocab_size`, `hidden_size`, `num_hidden_layers`, `tie_word_embeddings`, `bos_token_id`, `eos_token_id`,
        `pad_token_id`: as `ssmkit.LanguageModelConfig`.
    - `layer_types`: for each layer `"conv"` or `"full_attention"`.
    - `num_attention_heads`, `num_key_value_heads`, `rope_theta`, `rope_scaling`, `conv_L_cache`, `conv_bias`,
        `norm_eps`: as `Lfm2Config`.
    - `num_dense_layers`: how many of the first layers have an MLP; the others have experts.
    - `intermediate_size`, `moe_intermediate_size`: the widths of the hidden layers of an MLP, and of an expert.
    - `num_experts`, `num_experts_per_tok`, `use_expert_bias`, `norm_topk_prob`, `routed_scaling_factor`: the experts,
        as `ssmkit.MixtureOfExperts`.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    layer_types: tuple[str, ...]
    vocab_size: int = 65536
    hidden_size: int = 2048
    intermediate_size: int = 7168
    moe_intermediate_size: int = 1792
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
    num_dense_layers: int = 2
    num_experts: int = 32
    num_experts_per_tok: int = 4
    use_expert_bias: bool = True
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        layers, numbers = items(only("conv", "full_attention")), ("norm_eps", "rope_theta")
        own = {"layer_types": layers, "num_dense_layers": whole, "rope_scaling": _rope.scaling}
        return own | dict.fromkeys(numbers, above_0)

    def implied(self) -> dict[str, Any]:
        """Nothing follows from other keys."""
        return {}

    def contradictions(self) -> list[str]:
        """A message if there is not one type for each layer."""
        return _names.one_per_layer("layer_types", self.layer_types, self.num_hidden_layers)


def _layers(config: Lfm2MoeConfig, mixers: Mapping[str, Any], mlp: Any, experts: Any) -> list[tuple[Any, Any]]:
    """The mixer and the MLP of each layer, of those given."""
    kinds = enumerate(config.layer_types)
    return [(mixers[kind], mlp if i < config.num_dense_layers else experts) for i, kind in kinds]


def _description(config: Lfm2MoeConfig) -> ssmkit.LanguageModelConfig:
    keywords = """num_experts num_experts_per_tok intermediate_size=moe_intermediate_size use_expert_bias
        norm_topk_prob routed_scaling_factor"""
    mlp = layer("gated_mlp", config, "intermediate_size")
    experts = layer("moe", config, keywords, router="sigmoid", norm_topk_eps=1e-6)
    layers = _layers(config, lfm2.mixers(config), mlp, experts)
    return described(config, layers=[each for pair in layers for each in pair])


def _all_names(config: Lfm2MoeConfig) -> dict[str, Source]:
    experts = _names.experts(config.num_experts, gate="w1", up="w3", down="w2")
    experts |= {"router.weight": "gate.weight", "router.bias": "expert_bias"}
    return lfm2.all_names(_layers(config, lfm2.mixer_parts(config), lfm2.MLP, ("feed_forward", experts)))


ARCHITECTURE = family(
    Lfm2MoeConfig,
    model_type="lfm2_moe",
    hf_class="Lfm2MoeForCausalLM",
    description=_description,
    names=_all_names,
    spelled=lfm2.spelled,
)
