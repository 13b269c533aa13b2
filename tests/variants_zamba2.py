"""Small models of Zamba2, whose options are as odd as their configurations allow.

They are shallow, and groups of channels are where there is one transformer: with random weights, every use of a
transformer makes the logits more sensitive to rounding. In deeper ones, HF's own float32 logits were 1.2e-4 of the
largest off those in float64.
"""

import math
from typing import Any

from variant import Variant


def _published_limits(model: Any) -> None:
    """HF clips step sizes to at least `time_step_min` in prompts, which Zyphra's code and HF's own decoding do not."""
    for layer in model.model.layers:
        decoder = layer.mamba_decoder if hasattr(layer, "mamba_decoder") else layer
        decoder.mamba.time_step_limit = getattr(model.config, "time_step_limit", (0.0, math.inf))


ZAMBA2 = {
    "zamba2": Variant(
        "Zamba2ForCausalLM",
        dict(
            vocab_size=97,
            hidden_size=60,
            num_hidden_layers=4,
            layers_block_type=["linear_attention", "hybrid", "hybrid", "hybrid"],
            mamba_d_state=10,
            mamba_d_conv=3,
            mamba_expand=1,
            n_mamba_heads=6,
            chunk_size=7,
            add_bias_linear=True,
            intermediate_size=75,
            num_attention_heads=6,
            num_mem_blocks=2,
            use_shared_attention_adapter=True,
            adapter_rank=5,
            use_mem_rope=True,
            rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
            rms_norm_eps=1e-2,
        ),
        _published_limits,
    ),
    "zamba2-one transformer, odd heads": Variant(
        "Zamba2ForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=42,
            num_hidden_layers=3,
            layers_block_type=["hybrid", "linear_attention", "hybrid"],
            mamba_d_state=5,
            n_mamba_heads=7,
            time_step_limit=(0.02, 0.7),
            num_attention_heads=6,
            num_key_value_heads=2,
            adapter_rank=3,
            rms_norm_eps=1e-3,
        ),
        _published_limits,
    ),
    "zamba2-rotated groups": Variant(
        "Zamba2ForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=36,
            num_hidden_layers=2,
            layers_block_type=["linear_attention", "hybrid"],
            mamba_d_state=7,
            mamba_ngroups=2,
            n_mamba_heads=4,
            intermediate_size=20,
            hidden_act="gelu_pytorch_tanh",
            num_attention_heads=3,
            num_key_value_heads=1,
            num_mem_blocks=2,
            adapter_rank=4,
            use_mem_rope=True,
            tie_word_embeddings=False,
        ),
        _published_limits,
    ),
}
