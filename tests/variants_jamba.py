"""Small Jamba models, whose options are as odd as their configuration allows."""

from variant import Variant


JAMBA = {
    "jamba": Variant(
        "JambaForCausalLM",
        dict(
            vocab_size=97,
            hidden_size=42,
            intermediate_size=33,
            num_hidden_layers=5,
            num_attention_heads=3,
            num_key_value_heads=1,
            attn_layer_period=3,
            attn_layer_offset=2,
            expert_layer_period=2,
            expert_layer_offset=0,
            num_experts=5,
            num_experts_per_tok=3,
            mamba_d_state=7,
            mamba_d_conv=3,
            mamba_expand=1,
            mamba_dt_rank=5,
            mamba_proj_bias=True,
            mamba_conv_bias=False,
            rms_norm_eps=1e-3,
            tie_word_embeddings=True,
        ),
    ),
    "jamba-one expert": Variant(
        "JambaForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=36,
            intermediate_size=20,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=1,
            mamba_d_state=5,
            mamba_expand=3,
        ),
    ),
    "jamba-experts everywhere": Variant(
        "JambaForCausalLM",
        dict(
            vocab_size=50,
            hidden_size=20,
            intermediate_size=11,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=6,
            attn_layer_period=7,
            attn_layer_offset=0,
            expert_layer_period=1,
            expert_layer_offset=0,
            num_experts=4,
            num_experts_per_tok=4,
            mamba_d_state=1,
            mamba_d_conv=2,
        ),
    ),
}
