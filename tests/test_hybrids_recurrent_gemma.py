"""RecurrentGemma's files on the hub, whose keys are older than those that HF transformers writes today."""

import pytest

from ssmkit.checkpoint import CheckpointError
from ssmkit.models.hybrids import RecurrentGemmaConfig
from ssmkit.models.hybrids.recurrent_gemma import ARCHITECTURE


(HF,) = ARCHITECTURE.dialects
HUB = {
    "architectures": ["RecurrentGemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_window_size": 2048,
    "block_types": ["recurrent", "recurrent", "attention"],
    "bos_token_id": 2,
    "conv1d_width": 4,
    "embeddings_scale_by_sqrt_dim": True,
    "eos_token_id": 1,
    "final_w_init_variance_scale": 0.07692307692307693,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2560,
    "intermediate_size": 15360,
    "logits_soft_cap": 30.0,
    "lru_width": 2560,
    "model_type": "recurrent_gemma",
    "num_attention_heads": 10,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
    "use_cache": True,
    "vocab_size": 256000,
    "w_init_variance_scale": 0.01,
}


def test_a_file_of_the_hub():
    """Its model has the published layers, and an embedding scaled by the root of the width in bfloat16."""
    config = HF.read_config(HUB)
    assert config == RecurrentGemmaConfig(num_key_value_heads=1, intermediate_size=15360)
    assert HF.unknown_keys(HUB) == {}
    assert config.layers == ("recurrent", "recurrent", "attention") * 8 + ("recurrent", "recurrent")
    assert ARCHITECTURE.description is not None
    assert ARCHITECTURE.description(config).embedding_multiplier == 50.5  # the root itself is 50.596


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "relu"}, "`hidden_activation` must be 'gelu_pytorch_tanh'"),
        ({"embeddings_scale_by_sqrt_dim": False}, "`embeddings_scale_by_sqrt_dim` must be True"),
        ({"block_types": []}, "`block_types` must name at least one kind of layer"),
        ({"block_types": ["recurrent", "mamba"]}, r"`block_types\[1\]` must be 'recurrent' or 'attention'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "`rope_scaling` must be left out"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        HF.read_config(HUB | changes)
