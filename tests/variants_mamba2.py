"""Small hybrids with Mamba-2 layers of several families, whose options are as odd as their configurations allow."""

from typing import Any

from variant import Variant


def _published_limits(model: Any) -> None:
    """HF clips step sizes to at least `time_step_min`, and does not read the published `time_step_limit`."""
    for layer in model.model.layers:
        if layer.block_type == "linear_attention":
            layer.mixer.time_step_limit = model.config.time_step_limit


NEMOTRON_H = {
    "nemotron_h": Variant(
        "NemotronHForCausalLM",
        dict(
            vocab_size=97,
            hidden_size=60,
            hybrid_override_pattern="M-*EM",
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=14,
            intermediate_size=75,
            mamba_num_heads=6,
            mamba_head_dim=7,
            n_groups=3,
            ssm_state_size=10,
            conv_kernel=3,
            chunk_size=16,
            time_step_limit=(0.02, 0.7),
            n_routed_experts=6,
            num_experts_per_tok=3,
            n_group=3,
            topk_group=2,
            moe_intermediate_size=11,
            moe_shared_expert_intermediate_size=13,
            moe_latent_size=28,
            routed_scaling_factor=2.5,
            mlp_bias=True,
            use_bias=True,
            layer_norm_epsilon=1e-3,
        ),
        _published_limits,
    ),
    "nemotron_h-dense": Variant(
        "NemotronHForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=42,
            hybrid_override_pattern="M*-",
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=10,
            intermediate_size=33,
            mamba_num_heads=7,
            mamba_head_dim=9,
            n_groups=1,
            ssm_state_size=5,
            conv_kernel=2,
            use_conv_bias=False,
            mlp_hidden_act="silu",
            residual_in_fp32=True,
            tie_word_embeddings=True,
        ),
        _published_limits,
    ),
    "nemotron_h-experts": Variant(
        "NemotronHForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=36,
            hybrid_override_pattern="E*",
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            n_routed_experts=5,
            moe_intermediate_size=9,
            moe_shared_expert_intermediate_size=6,
            norm_topk_prob=False,
            mlp_hidden_act="gelu",
        ),
    ),
}

FALCON_H1 = {
    "falcon_h1": Variant(
        "FalconH1ForCausalLM",
        dict(
            vocab_size=97,
            hidden_size=60,
            intermediate_size=75,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=14,
            mamba_d_ssm=42,
            mamba_n_heads=6,
            mamba_n_groups=3,
            mamba_d_state=10,
            mamba_d_conv=3,
            mamba_chunk_size=16,
            mamba_rms_norm=True,
            mamba_norm_before_gate=False,
            mamba_proj_bias=True,
            attention_bias=True,
            mlp_bias=True,
            time_step_limit=(0.02, 0.7),
            rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
            embedding_multiplier=5.5,
            lm_head_multiplier=0.02,
            mlp_multipliers=[0.4, 2.5],
            key_multiplier=0.3,
            attention_in_multiplier=3.0,
            attention_out_multiplier=0.7,
            ssm_multipliers=[0.35, 2.5, 0.2, 5.0, 0.6],
            ssm_in_multiplier=1.7,
            ssm_out_multiplier=0.25,
        ),
    ),
    "falcon_h1-norm first": Variant(
        "FalconH1ForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=42,
            intermediate_size=33,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            mamba_d_ssm=45,
            mamba_n_heads=5,
            mamba_d_state=7,
            mamba_conv_bias=False,
            projectors_bias=True,
            mamba_rms_norm=True,
            rms_norm_eps=1e-3,
            tie_word_embeddings=True,
        ),
    ),
    "falcon_h1-no norm": Variant(
        "FalconH1ForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=36,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            mamba_d_ssm=40,
            mamba_n_heads=4,
            mamba_n_groups=2,
            mamba_d_state=5,
            rope_parameters={"rope_theta": 1e11, "rope_type": "default"},
        ),
    ),
}
