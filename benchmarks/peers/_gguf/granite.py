"""Granite 4.0 without experts and positions, so that llama.cpp's order of the features of a head does not matter."""

import gguf
import numpy as np

from ._architecture import Architecture, Config, Laid, describe_recurrence, lay_out_recurrence


def _describe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_feed_forward_length(config.shared_intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    # A layer without keys is one of Mamba-2.
    writer.add_head_count_kv([config.num_key_value_heads * (kind == "attention") for kind in config.layer_types])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_scaling_finetuned(False)  # no positions
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_logit_scale(config.logits_scaling)
    describe_recurrence(
        writer,
        taps=config.mamba_d_conv,
        channels=config.mamba_n_heads * config.mamba_d_head,
        state=config.mamba_d_state,
        heads=config.mamba_n_heads,
        groups=config.mamba_n_groups,
    )


def _lay_out(config: Config, name: str, tensor: np.ndarray) -> Laid:
    if "shared_mlp" not in name:
        yield from lay_out_recurrence(name, tensor, config.mamba_n_groups)
        return
    layer = name.split(".")[2]
    if "input_linear" in name:
        for half, part in zip(("gate", "up"), np.split(tensor, 2), strict=True):
            yield f"blk.{layer}.ffn_{half}.weight", part
    else:
        yield f"blk.{layer}.ffn_down.weight", tensor


ARCHITECTURE = Architecture(gguf.MODEL_ARCH.GRANITE_HYBRID, _describe, _lay_out)
