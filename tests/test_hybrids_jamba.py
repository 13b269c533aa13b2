"""Files of Jamba: the keys of published files, the layers that follow from them, and mistakes. Needs no PyTorch."""

import pytest
from hybrid_files import edited, saved_hybrid

import ssmkit
from ssmkit.checkpoint import CheckpointError
from ssmkit.models.hybrids import JambaConfig


saved = saved_hybrid("jamba-one expert")


def test_keys_of_published_files(saved, tmp_path):
    """Keys that change nothing are no warning, and keys that are left out have HF's defaults."""
    published = dict(
        attention_dropout=0.0,
        calc_logits_for_entire_prompt=False,
        mamba_dt_rank="auto",
        mamba_inner_layernorms=True,
        n_ctx=262144,
        num_key_value_heads=None,
        num_logits_to_keep=1,
        output_router_logits=False,
        router_aux_loss_coef=0.001,
        sliding_window=None,
        torch_dtype="bfloat16",
        use_associative_scan=True,
        use_cache=True,
        use_mamba_kernels=True,
        use_mambapy=False,
    )
    directory = edited(saved, tmp_path, ["mamba_d_conv", "mamba_conv_bias", "mamba_proj_bias"], **published)
    model = ssmkit.from_pretrained(directory, strict=True)
    assert model.config == ssmkit.from_pretrained(saved).config and model.config.mamba_dt_rank == 3


@pytest.mark.parametrize("name", ["layers_block_type", "layer_types"])
@pytest.mark.parametrize(("first", "second"), [("mamba", "attention"), ("linear_attention", "full_attention")])
def test_layers_by_name(saved, tmp_path, name, first, second):
    directory = edited(saved, tmp_path, **{name: [first, second, first]})
    assert ssmkit.from_pretrained(directory, strict=True).config == ssmkit.from_pretrained(saved).config


def test_layers_of_the_published_model():
    """Attention is one in eight of 32 layers."""
    config = JambaConfig()
    assert [i for i, kind in enumerate(config.layers_block_type) if kind == "attention"] == [4, 12, 20, 28]
    assert config.mamba_dt_rank == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_layer_offset": 2}, "`attn_layer_offset` must be below `attn_layer_period` = 2, got 2"),
        ({"expert_layer_offset": 5}, "`expert_layer_offset` must be below `expert_layer_period` = 2, got 5"),
        ({"layer_types": ["full_attention"] * 3}, "`layers_block_type` must be left out, or follow `attn_layer_per"),
        ({"mamba_inner_layernorms": False}, "`mamba_inner_layernorms` must be True"),
        ({"mamba_dt_rank": "half"}, r"`mamba_dt_rank` must be an integer.*, or \"auto\", got 'half'"),
        ({"hidden_act": "gelu"}, "`hidden_act` must be 'silu' or 'swish'"),
    ],
)
def test_mistakes(saved, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        ssmkit.from_pretrained(edited(saved, tmp_path, **changes))
