"""Falcon-H1. llama.cpp knows none of its multipliers: they are folded into the weights."""

import gguf
import numpy as np

from ._architecture import Architecture, Config, Laid, describe_recurrence, lay_out_recurrence


def _describe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    describe_recurrence(
        writer,
        taps=config.mamba_d_conv,
        channels=config.mamba_d_ssm,
        state=config.mamba_d_state,
        heads=config.mamba_n_heads,
        groups=config.mamba_n_groups,
    )


def _factors(config: Config) -> dict[str, float | np.ndarray]:
    """What the weights of a layer are multiplied with. A tied head reads the multiplied embedding."""
    keys = config.mamba_n_groups * config.mamba_d_state
    rows = np.repeat(config.ssm_multipliers, (config.mamba_d_ssm, config.mamba_d_ssm, keys, keys, config.mamba_n_heads))
    head, attention = config.lm_head_multiplier, config.attention_in_multiplier
    return {
        "embed_tokens": config.embedding_multiplier,
        "final_layernorm": head / config.embedding_multiplier if config.tie_word_embeddings else 1.0,
        "lm_head": head,
        "q_proj": attention,
        "k_proj": attention * config.key_multiplier,
        "v_proj": attention,
        "o_proj": config.attention_out_multiplier,
        "in_proj": config.ssm_in_multiplier * rows[:, None],
        "out_proj": config.ssm_out_multiplier,
        "gate_proj": config.mlp_multipliers[0],
        "down_proj": config.mlp_multipliers[1],
    }


def _lay_out(config: Config, name: str, tensor: np.ndarray) -> Laid:
    factor = _factors(config).get(name.removesuffix(".weight").rpartition(".")[2], 1.0)
    yield from lay_out_recurrence(name, np.float32(factor) * tensor, config.mamba_n_groups)


ARCHITECTURE = Architecture(gguf.MODEL_ARCH.FALCON_H1, _describe, _lay_out)
