"""LFM2. llama.cpp rotates the same pairs of features as HF, so that queries and keys stay as they are."""

import gguf
import numpy as np

from ._architecture import Architecture, Config, Laid


def _describe(writer: gguf.GGUFWriter, config: Config) -> None:
    attention = [kind == "full_attention" for kind in config.layer_types]
    writer.add_feed_forward_length(config.mlp_size)
    writer.add_head_count(config.num_attention_heads)
    # A layer without keys is one of convolution.
    writer.add_head_count_kv([config.num_key_value_heads if it else 0 for it in attention])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_shortconv_l_cache(config.conv_L_cache)


def _lay_out(config: Config, name: str, tensor: np.ndarray) -> Laid:
    yield name, tensor[:, 0] if name.endswith("conv.conv.weight") else tensor


ARCHITECTURE = Architecture(gguf.MODEL_ARCH.LFM2, _describe, _lay_out)
