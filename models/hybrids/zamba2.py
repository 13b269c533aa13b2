"""Zamba2 (arXiv 2411.15242): Mamba-2, and transformers that several layers share, with adapters."""

import dataclasses
import math
from typing import Any

import ssmkit
from ssmkit.checkpoint import Kind, items, only

from .._config import FOLLOWS, AbstractCheckedConfig, above_0
from . import _names
from ._family import activation, described, layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zamba2Config(AbstractCheckedConfig):
    """The configuration of a Zamba2 model, under the key names of HF transformers' `Zamba2Config`.

    **Arguments:**

    - `vocab_size`, `hidden_size`, `tie_word_embeddings`, `bos_token_id`, `eos_token_id`, `pad_token_id`: as
        `ssmkit.LanguageModelConfig`.
    - `num_hidden_layers`: the number of layers.
    - `layers_block_type`: for each layer `"mamba"`, or `"hybrid"` for Mamba-2 with a shared transformer before it.
    - `n_mamba_heads`, `mamba_ngroups`, `mamba_d_state`, `mamba_d_conv`, `mamba_expand`: the Mamba-2 layers, as
        `num_heads`, `n_groups`, `state_size`, `conv_kernel` and `expand` of `Mamba2Mixer`.
    - `chunk_size`, `time_step_limit`: as `Mamba2Mixer`.
    - `num_mem_blocks`: the number of shared transformers, which are used in turn.
    - `num_attention_heads`, `num_key_value_heads`: their heads, which have `2 * hidden_size` features together.
    - `use_mem_rope`, `rope_theta`: whether queries and keys are rotated, and the base of the wavelengths.
    - `intermediate_size`, `hidden_act`: the width of the hidden layers of their MLPs, and the activation.
    - `adapter_rank`: the rank of the MLPs' adapters, of which every use of a transformer has one.
    - `use_shared_attention_adapter`: whether queries, keys and values have adapters too.
    - `add_bias_linear`: whether the Mamba-2 layers and the MLPs have biases in their projections.
    - `rms_norm_eps`: the epsilon of every norm but those inside the Mamba-2 layers, which have 1e-5.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    vocab_size: int = 32000
    hidden_size: int = 2560
    num_hidden_layers: int = 54
    layers_block_type: tuple[str, ...] = FOLLOWS
    mamba_d_state: int = 64
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_ngroups: int = 1
    n_mamba_heads: int = 8
    chunk_size: int = 256
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    add_bias_linear: bool = False
    intermediate_size: int = FOLLOWS
    hidden_act: str = "gelu"
    num_attention_heads: int = 32
    num_key_value_heads: int = FOLLOWS
    num_mem_blocks: int = 1
    use_shared_attention_adapter: bool = False
    adapter_rank: int = 128
    use_mem_rope: bool = False
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    bos_token_id: int | tuple[int, ...] | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | tuple[int, ...] | None = 0

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        return {
            "layers_block_type": items(only("mamba", "hybrid")),
            "hidden_act": only("gelu", "gelu_pytorch_tanh", "relu", "silu"),
            "rope_theta": above_0,
            "rms_norm_eps": above_0,
        }

    def implied(self) -> dict[str, Any]:
        """The sizes that follow from others, and the layers of the published model of 54 layers."""
        hybrids = {*range(6, 43, 6), 47, 51}
        return {
            "layers_block_type": tuple("hybrid" if i in hybrids else "mamba" for i in range(54)),
            "intermediate_size": 4 * self.hidden_size,
            "num_key_value_heads": self.num_attention_heads,
        }

    def contradictions(self) -> list[str]:
        """Messages if layers are missing, if heads do not make up the features, or if HF would share no weights."""
        wrong = _names.one_per_layer("layers_block_type", self.layers_block_type, self.num_hidden_layers)
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        for name, parts, what, size in (
            ("n_mamba_heads", self.n_mamba_heads, "`mamba_expand` * `hidden_size`", self.channels),
            ("num_attention_heads", heads, "2 * `hidden_size`", 2 * self.hidden_size),
        ):
            if size % parts != 0:
                wrong.append(f"`{name}` must divide {what} = {size}, got {parts}")
        if not self.hybrids:
            wrong.append("`layers_block_type` must have a layer of kind 'hybrid'")
        if self.use_shared_attention_adapter and groups != heads:
            wrong.append(f"`num_key_value_heads` must be the {heads} heads where these have adapters, got {groups}")
        if not self.tie_word_embeddings and self.num_mem_blocks < len(self.hybrids):
            said = "HF transformers shares transformers only where it ties the embedding"
            wrong.append(
                f"`tie_word_embeddings` must be true, or `num_mem_blocks` at least {len(self.hybrids)}: {said}"
            )
        return wrong

    @property
    def channels(self) -> int:
        """The channels of the Mamba-2 layers."""
        return self.mamba_expand * self.hidden_size

    @property
    def hybrids(self) -> tuple[int, ...]:
        """The layers with a shared transformer."""
        return tuple(i for i, kind in enumerate(self.layers_block_type) if kind == "hybrid")


def description(config: Zamba2Config) -> ssmkit.LanguageModelConfig:
    """The model of a configuration as data. All layers are one block, because they share the transformers."""
    mamba = """num_heads=n_mamba_heads n_groups=mamba_ngroups state_size=mamba_d_state conv_kernel=mamba_d_conv
        expand=mamba_expand chunk_size time_step_limit use_bias=add_bias_linear"""
    shared = """num_heads=num_attention_heads num_kv_heads=num_key_value_heads intermediate_size adapter_rank
        use_bias=add_bias_linear use_attention_adapters=use_shared_attention_adapter norm_eps=rms_norm_eps"""
    mixer = layer("mamba2", config, mamba, head_dim=config.channels // config.n_mamba_heads)
    stack = layer(
        "shared_transformers",
        config,
        shared,
        mixers=config.num_hidden_layers * [mixer],
        places=config.hybrids,
        num_transformers=min(config.num_mem_blocks, len(config.hybrids)),
        activation=activation(config.hidden_act),
        rope_theta=config.rope_theta if config.use_mem_rope else None,
        scale=(config.hidden_size / config.num_attention_heads) ** -0.5,
    )
    return described(config, layers=[stack], norm_eps=config.rms_norm_eps)
