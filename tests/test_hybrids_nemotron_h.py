"""Files of Nemotron-H: layers as letters or by name, tensors of further heads, and mistakes. Needs no PyTorch."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hybrid_files import edited, saved_hybrid

import ssmkit
from ssmkit.checkpoint import CheckpointError
from ssmkit.models.hybrids import NemotronHConfig


saved = saved_hybrid("nemotron_h-dense")


@pytest.mark.parametrize("name", ["layers_block_type", "layer_types"])
@pytest.mark.parametrize("kinds", [["mamba", "attention", "mlp"], ["linear_attention", "full_attention", "mlp"]])
def test_layers_by_name(saved, tmp_path, name, kinds):
    assert json.loads((saved / "config.json").read_text())["hybrid_override_pattern"] == "M*-"
    expected = ssmkit.from_pretrained(saved, strict=True).config
    directory = edited(saved, tmp_path, ["hybrid_override_pattern"], **{name: kinds})
    assert ssmkit.from_pretrained(directory, strict=True).config == expected


def test_keys_and_tensors_of_published_files(saved, tmp_path):
    """Keys that change nothing are no warning, and what predicts further tokens is not read."""
    published = dict(
        num_query_groups=8,
        rms_norm_eps=1e-5,
        norm_eps=1e-5,
        time_step_rank=256,
        rope_theta=10000,
        partial_rotary_factor=1.0,
        mtp_hybrid_override_pattern="*E",
        num_nextn_predict_layers=1,
        mamba_proj_bias=False,
        use_mamba_kernels=True,
        mamba_n_groups=1,
        time_step_limit=[0.0, math.inf],
        sliding_window=None,
    )
    directory = edited(saved, tmp_path, ["n_groups"], **published)
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    tensors["mtp.layers.0.eh_proj.weight"] = np.zeros((2, 2), np.float32)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    expected = ssmkit.from_pretrained(saved)
    model = ssmkit.from_pretrained(directory, strict=True)
    assert model.config == expected.config and model.config.time_step_limit == (0.0, math.inf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hybrid_override_pattern": "M*X"}, r"`layers_block_type\[2\]` must be 'mamba' or .*, got 'X'"),
        ({"num_hidden_layers": 4}, "`layers_block_type` must have one entry for each of 4 layers, got 3"),
        ({"mamba_hidden_act": "relu"}, "`mamba_hidden_act` must be 'silu' or 'swish'"),
        ({"n_shared_experts": 2}, "`n_shared_experts` must be 1"),
    ],
)
def test_mistakes(saved, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        ssmkit.from_pretrained(edited(saved, tmp_path, **changes))


def test_experts_are_numbered_tensors(tmp_path):
    """A model of experts alone, in bfloat16, is saved and read exactly; scores stay float32."""
    config = NemotronHConfig(
        vocab_size=20,
        hidden_size=12,
        layers_block_type=("moe",),
        n_routed_experts=3,
        moe_intermediate_size=5,
        moe_shared_expert_intermediate_size=4,
    )
    model = ssmkit.build(config, key=jax.random.key(0), dtype=jnp.bfloat16)
    ssmkit.save_pretrained(model, tmp_path)
    stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    up, router = model.blocks[0].mixer.experts.up.weight, model.blocks[0].mixer.router
    for i in range(3):
        np.testing.assert_array_equal(stored[f"backbone.layers.0.mixer.experts.{i}.up_proj.weight"], up[i])
    assert router.weight.dtype == stored["backbone.layers.0.mixer.gate.weight"].dtype == jnp.float32
