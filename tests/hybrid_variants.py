"""Small hybrids of every published family, whose options are as odd as their configurations allow."""

import pathlib
import zlib
from typing import Any

import jax
import numpy as np
from variant import YARN, Variant
from variants_jamba import JAMBA
from variants_lfm2 import LFM2
from variants_mamba2 import FALCON_H1, NEMOTRON_H
from variants_zamba2 import ZAMBA2

import ssmkit


RECURRENT_GEMMA = {
    "recurrent_gemma": Variant(
        "RecurrentGemmaForCausalLM",
        dict(
            vocab_size=97,
            hidden_size=60,
            intermediate_size=94,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=1,
            lru_width=48,
            attention_window_size=19,
            conv1d_width=3,
            logits_soft_cap=12.0,
            rms_norm_eps=1e-3,
            block_types=["recurrent", "attention", "recurrent"],
            rope_parameters={"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.4},
        ),
    ),
    "recurrent_gemma-own head, biases": Variant(
        "RecurrentGemmaForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=42,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=3,
            head_dim=8,
            attention_window_size=50,
            attention_bias=True,
            tie_word_embeddings=False,
        ),
    ),
}

XLSTM = {
    "xlstm": Variant(
        "xLSTMForCausalLM",
        dict(
            vocab_size=97,
            hidden_size=60,
            num_hidden_layers=3,
            num_heads=3,
            qk_dim_factor=0.65,
            v_dim_factor=1.2,
            norm_eps=1e-3,
            eps=1e-2,
            ffn_proj_factor=1.9,
            ffn_round_up_to_multiple_of=7,
            gate_soft_cap=4.0,
            output_logit_soft_cap=5.0,
            autocast_kernel_dtype="float32",
            chunk_size=16,
        ),
    ),
    "xlstm-one head": Variant(
        "xLSTMForCausalLM",
        dict(
            vocab_size=50,
            embedding_dim=42,
            hidden_size=42,
            num_blocks=2,
            num_hidden_layers=2,
            num_heads=1,
            autocast_kernel_dtype="float32",
        ),
    ),
}

GRANITE = {
    "granitemoehybrid": Variant(
        "GraniteMoeHybridForCausalLM",
        dict(
            vocab_size=97,
            hidden_size=60,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            num_local_experts=0,
            num_experts_per_tok=0,
            shared_intermediate_size=75,
            layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"],
            mamba_n_heads=6,
            mamba_n_groups=2,
            mamba_d_state=10,
            mamba_expand=1,
            mamba_chunk_size=7,
            mamba_d_conv=3,
            mamba_proj_bias=True,
            mamba_conv_bias=False,
            time_step_limit=[0.05, 0.4],
            embedding_multiplier=9,
            residual_multiplier=0.3,
            attention_multiplier=0.07,
            logits_scaling=5.5,
            attention_bias=True,
            position_embedding_type="nope",
        ),
    ),
    "granitemoehybrid-rope": Variant(
        "GraniteMoeHybridForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=42,
            num_hidden_layers=2,
            num_attention_heads=3,
            head_dim=10,
            num_local_experts=0,
            shared_intermediate_size=33,
            layer_types=["full_attention", "linear_attention"],
            mamba_n_heads=7,
            mamba_d_state=5,
            rms_norm_eps=1e-3,
            attention_multiplier=1.5,
            rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
            position_embedding_type="rope",
            tie_word_embeddings=True,
        ),
    ),
    "granitemoehybrid-experts": Variant(
        "GraniteMoeHybridForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=42,
            intermediate_size=11,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_local_experts=5,
            num_experts_per_tok=3,
            shared_intermediate_size=33,
            layer_types=["linear_attention", "full_attention"],
            mamba_n_heads=7,
            mamba_d_state=5,
            attention_multiplier=0.5,
            residual_multiplier=1.7,
        ),
    ),
    "granitemoehybrid-attention only": Variant(
        "GraniteMoeHybridForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=36,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            num_local_experts=0,
            shared_intermediate_size=20,
            layer_types=["full_attention", "full_attention"],
            mamba_n_heads=8,
            residual_multiplier=2.5,
            attention_multiplier=0.3,
            position_embedding_type="rope",
        ),
    ),
}

BAMBA = {
    "bamba": Variant(
        "BambaForCausalLM",
        dict(
            vocab_size=97,
            hidden_size=60,
            intermediate_size=75,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=1,
            attn_layer_indices=[1, 2],
            mamba_n_heads=6,
            mamba_n_groups=3,
            mamba_d_state=10,
            mamba_expand=1,
            mamba_chunk_size=7,
            mamba_d_conv=3,
            mamba_proj_bias=True,
            mamba_conv_bias=False,
            time_step_limit=[0.05, 0.4],
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.3},
            tie_word_embeddings=True,
        ),
    ),
    "bamba-one layer of each": Variant(
        "BambaForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=42,
            intermediate_size=33,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=None,
            head_dim=8,
            attn_layer_indices=[0],
            mamba_n_heads=7,
            mamba_d_state=5,
            rms_norm_eps=1e-3,
            time_step_limit=[0.0, float("inf")],
            rope_parameters=YARN,
        ),
    ),
}

_MAMBA2 = {**GRANITE, **BAMBA, **NEMOTRON_H, **FALCON_H1, **ZAMBA2}
VARIANTS: dict[str, Variant] = {**LFM2, **RECURRENT_GEMMA, **XLSTM, **JAMBA, **_MAMBA2}
"""All of them by name. The first one of each family has the name of its `model_type`."""


def hybrid(name: str, seed: int = 0) -> ssmkit.AbstractLanguageModel[Any]:
    """The model of a variant, built by this package with random weights."""
    return ssmkit.build({"model_type": name.split("-")[0], **VARIANTS[name].config}, key=jax.random.key(seed))


# Of parameters that say how long a state lasts, and how much of the input goes by. A `recurrent_param` below -4 would
# make HF's float32 difference of 1 and a squared decay most of the error.
_RANGES = {"A_log": (0.0, 2.0), "dt_bias": (-4.0, 1.0), "D": (-1.0, 1.0), "recurrent_param": (-4.0, 0.0)}


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor that makes the logits depend on everything. It depends on its name and shape only."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    *_, owner, last = ["", *name.split(".")]
    if "norm" in owner and last == "weight":
        return rng.uniform(0.5, 1.5, shape)
    if owner == "fgate_preact" and last == "bias":
        return rng.uniform(0.0, 6.0, shape)
    if last in _RANGES:
        return rng.uniform(*_RANGES[last], shape)
    if len(shape) < 2:
        return rng.normal(0.0, 0.3, shape)
    return rng.normal(0.0, 1.0, shape) * (1.0 if "embed" in owner else shape[-1] ** -0.5)


def hf_model(variant: Variant, directory: pathlib.Path) -> Any:
    """The model of HF transformers with random tensors, and its checkpoint of several files."""
    import safetensors.numpy
    import transformers

    cls = getattr(transformers, variant.hf_class)
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    cls(cls.config_class(**special | variant.config)).save_pretrained(directory, max_shard_size="20KB")
    for file in directory.glob("*.safetensors"):
        tensors = safetensors.numpy.load_file(file)
        drawn = {name: random_tensor(name, it.shape).astype(it.dtype) for name, it in tensors.items()}
        safetensors.numpy.save_file(drawn, file, metadata={"format": "pt"})
    model = cls.from_pretrained(directory).eval()
    if model._can_set_experts_implementation():  # the default one takes multiples of 16 bytes only
        model.set_experts_implementation("eager")
    variant.mend(model)
    return model
