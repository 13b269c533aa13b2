"""Nemotron-H (arXiv 2504.03624): each layer is one of Mamba-2, attention, an MLP or a mixture of experts."""

import dataclasses
import math
from typing import Any

import ssmkit
from ssmkit.checkpoint import Kind, items, only

from .._config import FOLLOWS, AbstractCheckedConfig, above_0
from . import _names
from ._family import activation, described, layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class NemotronHConfig(AbstractCheckedConfig):
    """The configuration of a Nemotron-H or Nemotron 3 model, under the key names of HF transformers' `NemotronHConfig`.

    **Arguments:**

    - `vocab_size`, `hidden_size`, `residual_in_fp32`, `bos_token_id`, `eos_token_id`, `pad_token_id`: as
        `ssmkit.LanguageModelConfig`.
    - `tie_word_embeddings`: kept for the file only. The head always has a matrix of its own, as in HF transformers.
    - `layers_block_type`: for each layer `"mamba"`, `"attention"`, `"mlp"` or `"moe"`.
    - `num_hidden_layers`: the number of layers, which follows from their types.
    - `mamba_num_heads`, `mamba_head_dim`, `n_groups`, `ssm_state_size`, `conv_kernel`, `chunk_size`, `use_bias`,
        `use_conv_bias`, `time_step_limit`: the Mamba-2 layers, as `Mamba2Mixer`.
    - `num_attention_heads`, `num_key_value_heads`, `head_dim`: the attention layers, which have no positions.
    - `intermediate_size`, `mlp_hidden_act`, `mlp_bias`: the MLPs, as `ssmkit.MLP`.
    - `n_routed_experts`, `num_experts_per_tok`, `moe_intermediate_size`, `moe_shared_expert_intermediate_size`,
        `moe_latent_size`, `n_group`, `topk_group`, `norm_topk_prob`, `routed_scaling_factor`: the mixtures of experts,
        as `ssmkit.MixtureOfExperts`.
    - `layer_norm_epsilon`: the epsilon of every norm.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    vocab_size: int = 131072
    hidden_size: int = 4096
    layers_block_type: tuple[str, ...] = ("mamba", "moe", "attention", "mlp")
    num_hidden_layers: int = FOLLOWS
    tie_word_embeddings: bool = False
    residual_in_fp32: bool = False
    layer_norm_epsilon: float = 1e-5
    bos_token_id: int | tuple[int, ...] | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | tuple[int, ...] | None = 0
    mamba_num_heads: int = 128
    mamba_head_dim: int = 64
    n_groups: int = 8
    ssm_state_size: int = 128
    conv_kernel: int = 4
    chunk_size: int = 128
    use_bias: bool = False
    use_conv_bias: bool = True
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 21504
    mlp_hidden_act: str = "relu2"
    mlp_bias: bool = False
    n_routed_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 7688
    moe_shared_expert_intermediate_size: int = 7688
    moe_latent_size: int | None = None
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: int | float = 1.0

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        return {
            "layers_block_type": items(only("mamba", "attention", "mlp", "moe")),
            "layer_norm_epsilon": above_0,
            "mlp_hidden_act": only("relu2", "relu", "silu", "gelu", "gelu_pytorch_tanh"),
        }

    def implied(self) -> dict[str, Any]:
        """The number of layers."""
        return {"num_hidden_layers": len(self.layers_block_type)}

    def contradictions(self) -> list[str]:
        """A message if there is not one type for each layer."""
        return _names.one_per_layer("layers_block_type", self.layers_block_type, self.num_hidden_layers)


def description(config: NemotronHConfig) -> ssmkit.LanguageModelConfig:
    """The model of a configuration as data: one mixer per layer."""
    mlp, act = "use_bias=mlp_bias", activation(config.mlp_hidden_act)
    attention = "num_heads=num_attention_heads num_kv_heads=num_key_value_heads head_dim"
    mamba = """num_heads=mamba_num_heads head_dim=mamba_head_dim n_groups state_size=ssm_state_size conv_kernel
        chunk_size use_bias use_conv_bias time_step_limit norm_eps=layer_norm_epsilon"""
    experts = """num_experts=n_routed_experts num_experts_per_tok intermediate_size=moe_intermediate_size n_group
        shared_intermediate_size=moe_shared_expert_intermediate_size latent_size=moe_latent_size topk_group
        norm_topk_prob routed_scaling_factor"""
    scores = {"router": "sigmoid", "use_expert_bias": True}
    mixers = {
        "mamba": layer("mamba2", config, mamba, intermediate_size=config.mamba_num_heads * config.mamba_head_dim),
        "attention": layer("attention", config, attention, rope_theta=None),
        "mlp": layer("mlp", config, f"{mlp} intermediate_size", activation=act),
        "moe": layer("moe", config, f"{mlp} {experts}", gated=False, activation=act, **scores),
    }
    layers = [mixers[kind] for kind in config.layers_block_type]
    return described(config, layers=layers, norm_eps=config.layer_norm_epsilon, tie_word_embeddings=False)
