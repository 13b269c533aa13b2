"""The keys of published files against those of HF transformers 5: both describe the same model. Needs no PyTorch."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import pytest

import ssmkit
from ssmkit.models.hybrids import bamba, granitemoehybrid, lfm2, recurrent_gemma


FOLDER = pathlib.Path(__file__).parent / "golden" / "hybrids"
PUBLISHED: dict[str, tuple[ssmkit.checkpoint.Architecture, Mapping[str, Any]]] = {
    "lfm2": (
        lfm2.ARCHITECTURE,
        dict(
            layer_types=None,
            full_attn_idxs=[1],
            intermediate_size=...,
            block_ff_dim=100,
            tie_word_embeddings=...,
            tie_embedding=False,
            rope_parameters=...,
            rope_theta=5000.0,
            theta=5000.0,
            block_dim=60,
            block_norm_eps=1e-5,
            block_use_swiglu=True,
            conv_dim=60,
            conv_use_xavier_init=True,
            num_heads=6,
            use_pos_enc=True,
            torch_dtype="bfloat16",
        ),
    ),
    "granitemoehybrid": (
        granitemoehybrid.ARCHITECTURE,
        dict(
            layer_types=["mamba", "attention", "mamba", "attention"],
            mamba_d_head="auto",
            rope_parameters=...,
            rope_theta=10000,
            rope_scaling=None,
            init_method="mup",
            normalization_function="rmsnorm",
            torch_dtype="bfloat16",
        ),
    ),
    "granitemoehybrid, layers under their older name": (
        granitemoehybrid.ARCHITECTURE,
        dict(layer_types=..., layers_block_type=["mamba", "attention", "mamba", "attention"]),
    ),
    "bamba": (
        bamba.ARCHITECTURE,
        dict(
            attn_rotary_emb=6,
            mamba_d_head="auto",
            rope_parameters=...,
            rope_theta=500,
            rope_scaling=None,
            partial_rotary_factor=0.3,
            torch_dtype="bfloat16",
        ),
    ),
    "recurrent_gemma": (
        recurrent_gemma.ARCHITECTURE,
        dict(
            rope_parameters=...,
            rope_theta=500.0,
            partial_rotary_factor=0.4,
            embeddings_scale_by_sqrt_dim=True,
            _block_types=["recurrent", "attention", "recurrent"],
            torch_dtype="float32",
        ),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_keys(name):
    """An ellipsis takes a key of HF transformers 5 away."""
    architecture, keys = PUBLISHED[name]
    (dialect,) = architecture.dialects
    content = json.loads((FOLDER / f"{name.split(',')[0]}.json").read_text())
    published = {key: value for key, value in {**content, **keys}.items() if value is not ...}
    assert published != content
    assert dialect.read_config(published) == dialect.read_config(content)
    assert dialect.unknown_keys(published) == {}
