"""The file format of Nemotron-H, as data. The layers are letters, as in NVIDIA's files."""

from ssmkit.checkpoint import Source, only

from .._hf_formats import written_limit
from . import _names
from ._family import Content, family, hub_layers, renamed
from .nemotron_h import NemotronHConfig, description


_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}

_OTHER_SPELLINGS = {
    "attention_head_dim": "head_dim",
    "layer_types": "layers_block_type",
    "mamba_chunk_size": "chunk_size",
    "mamba_conv_bias": "use_conv_bias",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_limit": "time_step_limit",
    "mamba_n_groups": "n_groups",
    "num_local_experts": "n_routed_experts",
}


def _all_names(config: NemotronHConfig) -> dict[str, Source]:
    experts = _names.experts(config.n_routed_experts, up="up_proj", down="down_proj")
    experts |= _names.within("shared", "shared_experts", _names.mlp())
    experts |= {"router.weight": "gate.weight", "router.bias": "gate.e_score_correction_bias"}
    experts |= _names.linears(latent_in="fc1_latent_proj", latent_out="fc2_latent_proj")
    mlp, mamba = _names.mlp(), _names.mamba2(config.conv_kernel)
    tables = {"mamba": mamba, "attention": _names.attention(), "mlp": mlp, "moe": experts}
    names = _names.ends(embedding="backbone.embeddings", norm="backbone.norm_f")
    for i, kind in enumerate(config.layers_block_type):
        names[f"blocks.{i}.norm.weight"] = Source(f"backbone.layers.{i}.norm.weight")
        names |= _names.under(f"blocks.{i}.mixer", f"backbone.layers.{i}.mixer", tables[kind])
    return names


def _spelled(content: Content) -> Content:
    """As for `family`. A list of layers counts before their letters, as in HF's class."""
    content = renamed(content, _OTHER_SPELLINGS)
    pattern = content.pop("hybrid_override_pattern", None)
    if content.get("layers_block_type") is None and isinstance(pattern, str):
        content["layers_block_type"] = [_LETTERS.get(letter, letter) for letter in pattern]
    return hub_layers(content, "layers_block_type")


def _written(config: NemotronHConfig) -> Content:
    """As for `family`: the layers as letters."""
    letters = {kind: letter for letter, kind in _LETTERS.items()}
    pattern = "".join(letters[kind] for kind in config.layers_block_type)
    limit = written_limit(config.time_step_limit)
    return {"layers_block_type": None, "hybrid_override_pattern": pattern, "time_step_limit": limit}


ARCHITECTURE = family(
    NemotronHConfig,
    model_type="nemotron_h",
    hf_class="NemotronHForCausalLM",
    description=description,
    names=_all_names,
    spelled=_spelled,
    written=_written,
    only={"mamba_hidden_act": only("silu", "swish"), "n_shared_experts": only(1)},
    # These keys change neither HF's model nor NVIDIA's, or only how weights are initialised and cached.
    dead="""
        attention_bias expand mamba_dt_init_floor mamba_dt_max mamba_dt_min mamba_expand mamba_proj_bias
        mamba_ssm_cache_dtype moe_shared_expert_overlap mtp_hybrid_override_pattern mtp_layers_block_type norm_eps
        num_nextn_predict_layers num_query_groups partial_rotary_factor rms_norm_eps rope_theta sliding_window
        time_step_floor time_step_max time_step_min time_step_rank
    """.split(),
    base="backbone.",
    embedding="embeddings",
    ignored=("mtp.*",),
)
