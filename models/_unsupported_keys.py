"""Unsupported keys of configuration files that would change the results of a model, with the reason for each.

A file with such a key loads only if its value has no effect: null, false, something empty, or a value named here.
"""

from typing import Any

from ssmkit.checkpoint import Key, without


_ATTENTION = "this architecture has no such attention"
_LAYERS = "this architecture has no such layers"
_EXPERTS = "this architecture has no such experts"
_FACTOR = "this architecture has no such factor"
_CAP = "this architecture has no capped logits"
_OTHER_INPUT = "only one causal stack of layers is supported"
_ADAPTER = "adapters are not supported: merge it into the model's weights first"
_LINEAR = ("linear_attention", "mamba", "mamba2")

_REASONS: dict[str, tuple[Any, ...]] = {  # the reason, then values that ask for nothing
    "attn_layer_idx": (_ATTENTION,),
    "attn_layer_indices": (_ATTENTION,),
    "attn_layer_offset": (_ATTENTION,),
    "attn_layer_period": (_ATTENTION,),
    "rope_parameters": (_ATTENTION,),
    "rope_scaling": (_ATTENTION,),
    "sliding_window": (_ATTENTION,),
    "use_sliding_window": (_ATTENTION,),
    "attn_logit_softcapping": (_ATTENTION,),
    "block_types": (_LAYERS,),
    "hybrid_override_pattern": (_LAYERS,),
    "layers_block_type": (_LAYERS,),
    "expert_layer_offset": (_EXPERTS,),
    "expert_layer_period": (_EXPERTS,),
    "moe": (_EXPERTS,),
    "moe_intermediate_size": (_EXPERTS,),
    "num_experts": (_EXPERTS, 0, 1),
    "num_experts_per_tok": (_EXPERTS, 0, 1),
    "num_local_experts": (_EXPERTS, 0, 1),
    "attention_multiplier": (_FACTOR, 1),
    "embedding_multiplier": (_FACTOR, 1),
    "embedding_scale": (_FACTOR, 1),
    "lm_head_multiplier": (_FACTOR, 1),
    "logit_scale": (_FACTOR, 1),
    "logits_scaling": (_FACTOR, 1),
    "mlp_multipliers": (_FACTOR, [1, 1]),
    "residual_multiplier": (_FACTOR, 1),
    "scale_emb": (_FACTOR, 1),
    "scale_embeddings": (_FACTOR,),
    "ssm_in_multiplier": (_FACTOR, 1),
    "ssm_multipliers": (_FACTOR, [1, 1, 1, 1, 1]),
    "ssm_out_multiplier": (_FACTOR, 1),
    "final_logit_softcapping": (_CAP,),
    "logits_soft_cap": (_CAP,),
    "add_cross_attention": (_OTHER_INPUT,),
    "bidirectional": (_OTHER_INPUT,),
    "vision_config": (_OTHER_INPUT,),
    "lora": (_ADAPTER,),
    "peft_config": (_ADAPTER,),
}


def _layer_types(value: Any) -> None:
    """As `without`: HF calls every layer of these models `linear_attention`."""
    if value is not None and not (isinstance(value, list) and all(kind in _LINEAR for kind in value)):
        raise ValueError(f"nothing but layers called {' or '.join(_LINEAR)}: {_LAYERS}")


def _quantization(value: Any) -> None:
    """As `without`, for the key that HF's quantisers write."""
    if value:
        value = value if isinstance(value, dict) else {}
        method = value.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in value else "unknown")
        raise ValueError(
            f"no quantised weights (method {method}): dequantise them with the library that made them, or take the "
            "checkpoint they were made of, and quantise that here with `quantize=`"
        )


def _mlx(value: Any) -> None:
    """As `without`, for the key that MLX writes."""
    if value:
        raise ValueError(
            "no weights that MLX quantised: dequantise them with it (`mlx_lm.convert --dequantize`), or take the "
            "checkpoint they were made of"
        )


UNSUPPORTED = {
    **{name: Key(without(*reason), default=None) for name, reason in _REASONS.items()},
    "layer_types": Key(_layer_types, default=None),
    "quantization_config": Key(_quantization, default=None),
    "quantization": Key(_mlx, default=None),
}
