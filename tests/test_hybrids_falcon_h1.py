"""Files of Falcon-H1: sizes that follow from others, the keys of published files, and mistakes. Needs no PyTorch."""

import math

import pytest
from hybrid_files import edited, saved_hybrid

import ssmkit
from ssmkit.checkpoint import CheckpointError
from ssmkit.models.hybrids import FalconH1Config


saved = saved_hybrid("falcon_h1-no norm")


def test_keys_of_published_files(saved, tmp_path):
    """Positions beside the other keys, a head's size as "auto", and keys that change nothing."""
    published = dict(
        rope_theta=1e11,
        rope_scaling=None,
        rope_parameters=None,
        attn_layer_indices=None,
        mamba_d_head="auto",
        mamba_use_mlp=True,
        mlp_expansion_factor=8,
        num_logits_to_keep=1,
        time_step_limit=[0.0, math.inf],
        torch_dtype="bfloat16",
    )
    model = ssmkit.from_pretrained(edited(saved, tmp_path, **published), strict=True)
    assert model.config == ssmkit.from_pretrained(saved).config
    assert model.config.rope_theta == 1e11 and model.config.mamba_d_head == 10


def test_sizes_that_follow_from_others():
    config = FalconH1Config(hidden_size=20, num_attention_heads=2, mamba_d_ssm=None, mamba_n_heads=5)
    assert (config.mamba_d_ssm, config.mamba_d_head, config.head_dim) == (40, 8, 10)
    assert FalconH1Config(num_key_value_heads=None).num_key_value_heads == 32
    assert (config.mlp_multipliers, config.ssm_multipliers) == ((1.0,) * 2, (1.0,) * 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mamba_n_heads": 3}, r"`mamba_n_heads` \* `mamba_d_head` must be `mamba_d_ssm` = 40, got 3 \* 10"),
        ({"ssm_multipliers": [1.0, 2.0]}, "`ssm_multipliers` must be a list of 5 values"),
        ({"key_multiplier": 0.0}, "`key_multiplier` must be a finite number above 0, got 0.0"),
        ({"hidden_act": "gelu"}, "`hidden_act` must be 'silu' or 'swish'"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` must be 1"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "`rope_type` is one of linear, llama3, yarn"),
        ({"rope_scaling": [2.0]}, "`rope_parameters` and `rope_scaling` must be tables"),
        (
            {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0]}},
            "must be a table of numbers",
        ),
    ],
)
def test_mistakes(saved, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        ssmkit.from_pretrained(edited(saved, tmp_path, **changes))
