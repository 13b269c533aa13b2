"""The file format of Mamba-2 models with layers of attention, as data: that of the mamba_ssm package.

Keys that a file leaves out have that package's defaults. It has no keys for the ids of special tokens.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ssmkit.checkpoint import (
    Architecture,
    Key,
    Reshape,
    Source,
    boolean,
    factor,
    items,
    only,
    optional,
    positive,
    whole,
)

from .._mamba_family_formats import made
from .._state_spaces_formats import is_state_spaces, read_state_spaces, state_spaces
from ..mamba2_formats import MAMBA2_DEAD, MAMBA2_KEYS, write_mamba2
from . import _names
from .mamba2_attention import Mamba2AttentionConfig, description


def _attention(config: Mamba2AttentionConfig) -> _names.Table:
    dim = config.attention_head_dim
    queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
    return {
        **_names.fused("in_proj", {"q_proj": queries, "k_proj": keys, "v_proj": keys}),
        "conv.weight": ("conv1d.weight", Reshape((-1, 1, config.attention_conv_kernel))),
        "conv.bias": "conv1d.bias",
        **_names.linear("o_proj", "out_proj"),
    }


def _all_names(config: Mamba2AttentionConfig) -> dict[str, Source]:
    mamba = _names.mamba2(config.conv_kernel) | {"D": ("D", Reshape((-1,)))}
    attention, mlp = _attention(config), _names.linears("fc1", "fc2")
    names = _names.ends(embedding="backbone.embedding", norm="backbone.norm_f")
    names |= _names.under("norm", "backbone.norm_f", {"bias": "bias"})
    for i in range(config.num_hidden_layers):
        layer = f"backbone.layers.{i}"
        parts = [("norm", "mixer", attention if i in config.attention_layers else mamba)]
        parts += [("norm2", "mlp", mlp)] if config.d_intermediate else []
        for block, (norm, name, table) in enumerate(parts, len(parts) * i):
            names |= _names.under(f"blocks.{block}", layer, _names.linear("norm", norm))
            names |= _names.under(f"blocks.{block}.mixer", f"{layer}.{name}", table)
    return names


_KEYS = {
    **MAMBA2_KEYS,
    "attn_layer_idx": Key(items(whole), "attention_layers"),
    "attn_cfg.causal": Key(only(True), default=False),
    "attn_cfg.num_heads": Key(positive, "num_attention_heads"),
    "attn_cfg.num_heads_kv": Key(optional(positive), "num_key_value_heads", None),
    "attn_cfg.head_dim": Key(optional(positive), "attention_head_dim", None),
    "attn_cfg.d_conv": Key(whole, "attention_conv_kernel", 0),
    "attn_cfg.qkv_proj_bias": Key(boolean, "attention_bias", True),
    "attn_cfg.out_proj_bias": Key(boolean, "attention_output_bias", True),
    "attn_cfg.softmax_scale": Key(optional(factor), "attention_scale", None),
    "attn_cfg.rotary_emb_dim": Key(whole, "rotary_dim", 0),
    "attn_cfg.rotary_emb_base": Key(factor, "rope_theta", 10000.0),
    "attn_cfg.rotary_emb_interleaved": Key(only(False), default=False),
    "attn_cfg.mlp_dim": Key(only(0), default=0),
}


def _read(content: Mapping[str, Any]) -> Mamba2AttentionConfig:
    """As `Dialect.read_config`."""
    return made(Mamba2AttentionConfig, read_state_spaces(content, _KEYS))


def _write(config: Mamba2AttentionConfig, dtype: str) -> dict[str, Any]:
    """As `Dialect.write_config`. Sizes that follow from others are left out."""
    content = write_mamba2(config, _KEYS)
    implied = dataclasses.replace(config, num_key_value_heads=None, attention_head_dim=None)
    for name, field in (("num_heads_kv", "num_key_value_heads"), ("head_dim", "attention_head_dim")):
        if getattr(config, field) == getattr(implied, field):
            del content["attn_cfg"][name]
    return content | {"attn_cfg": {"causal": True, **content["attn_cfg"]}}


_STATE_SPACES = state_spaces(
    lambda content: is_state_spaces(content) and bool(content.get("attn_layer_idx")),
    _all_names,
    _KEYS,
    MAMBA2_DEAD,
    _read,
    _write,
)

ARCHITECTURE = Architecture(
    name="mamba2_attention",
    config=Mamba2AttentionConfig,
    description=description,
    dialects=(_STATE_SPACES,),
    layers="num_hidden_layers",
    equal_layers=False,
)
