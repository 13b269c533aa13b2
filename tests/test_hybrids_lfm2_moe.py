"""Files of LFM2 with experts: the keys of published files, and mistakes. Needs no PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hybrid_files import edited, saved_hybrid

import ssmkit
from ssmkit.checkpoint import CheckpointError


saved = saved_hybrid("lfm2_moe-one expert")


def test_keys_of_published_files(saved, tmp_path):
    """Positions beside the other keys, the other name of one key, and keys that change nothing."""
    published = dict(
        initializer_range=0.02,
        max_position_embeddings=128000,
        rope_theta=1000000.0,
        tie_embedding=True,
        torch_dtype="bfloat16",
        use_cache=True,
    )
    left_out = ["rope_parameters", "tie_word_embeddings", "conv_bias", "norm_topk_prob", "routed_scaling_factor"]
    model = ssmkit.from_pretrained(edited(saved, tmp_path, left_out, **published), strict=True)
    assert model.config == ssmkit.from_pretrained(saved).config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, "`layer_types` must have one entry for each of 2 layers, got 3"),
        ({"layer_types": ["conv", "conv", "mamba"]}, r"`layer_types\[2\]` must be 'conv' or 'full_attention'"),
        ({"num_experts_per_tok": 2}, "`num_experts_per_tok` must be at most `num_experts`, 1, got 2"),
        ({"layer_types": None}, "`layer_types` must be a list, got None"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "`rope_scaling` must be .*dynamic"),
    ],
)
def test_mistakes(saved, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        ssmkit.from_pretrained(edited(saved, tmp_path, **changes))


def test_experts_and_their_choice_in_files(tmp_path):
    """In bfloat16, experts are numbered tensors; the router and the bias of the choice stay float32."""
    config = dict(
        model_type="lfm2_moe",
        vocab_size=20,
        hidden_size=12,
        num_hidden_layers=1,
        layer_types=["conv"],
        num_dense_layers=0,
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=5,
    )
    model = ssmkit.build(config, key=jax.random.key(0), dtype=jnp.bfloat16)
    ssmkit.save_pretrained(model, tmp_path)
    stored, moe = safetensors.numpy.load_file(tmp_path / "model.safetensors"), model.blocks[1].mixer
    for i in range(3):
        for name, layer in (("w1", moe.experts.gate), ("w3", moe.experts.up), ("w2", moe.experts.down)):
            np.testing.assert_array_equal(
                stored[f"model.layers.0.feed_forward.experts.{i}.{name}.weight"], layer.weight[i]
            )
    for name in ("gate.weight", "expert_bias"):
        assert stored[f"model.layers.0.feed_forward.{name}"].dtype == np.float32
