"""The file format of Zamba2, as data. A shared transformer and all its adapters lie in the layer that is its first."""

from ssmkit.checkpoint import Source, only

from .._hf_formats import written_limit
from . import _names, _rope
from ._family import Content, family, hub_layers, renamed
from .zamba2 import Zamba2Config, description


_ATTENTION = ("q", "k", "v")


def _transformer() -> _names.Table:
    """The weights that all uses of a transformer share."""
    table = {"attention_norm.weight": "input_layernorm.weight", "mlp_norm.weight": "pre_ff_layernorm.weight"}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        table |= _names.linear(name, f"self_attn.{name}")
    for path, name in (("gate_up", "gate_up_proj"), ("down", "down_proj")):
        table |= _names.linear(path, f"feed_forward.{name}")
    return table


def _adapters(use: int) -> _names.Table:
    """The adapters of one use, among those of its transformer."""
    lists = {f"{name}_adapter": f"self_attn.linear_{name}_adapter_list" for name in _ATTENTION}
    lists["gate_up_adapter"] = "feed_forward.gate_up_proj_adapter_list"
    factors = ("down", "up")
    return {f"{path}.{factors[i]}.weight": f"{name}.{use}.{i}.weight" for path, name in lists.items() for i in (0, 1)}


def _all_names(config: Zamba2Config) -> dict[str, Source]:
    names, hybrids = _names.ends(norm="model.final_layernorm"), config.hybrids
    for i, kind in enumerate(config.layers_block_type):
        part = f"model.layers.{i}" if kind == "mamba" else f"model.layers.{i}.mamba_decoder"
        names[f"blocks.0.layers.{i}.norm.weight"] = Source(f"{part}.input_layernorm.weight")
        names |= _names.under(f"blocks.0.layers.{i}.mixer", f"{part}.mamba", _names.mamba2(config.mamba_d_conv))
    for use, place in enumerate(hybrids):
        turn = use % config.num_mem_blocks
        transformer = f"model.layers.{hybrids[turn]}.shared_transformer"
        names |= _names.under(f"blocks.0.uses.{use}", f"model.layers.{place}", _names.linear("out_proj", "linear"))
        names |= _names.under(f"blocks.0.uses.{use}", transformer, _adapters(use))
        if turn == use:
            names |= _names.under(f"blocks.0.transformers.{use}", transformer, _transformer())
    return names


def _spelled(content: Content) -> Content:
    """As for `family`. A limit of null is none."""
    content = {name: value for name, value in content.items() if (name, value) != ("time_step_limit", None)}
    return hub_layers(_rope.flat(renamed(content, {"layer_types": "layers_block_type"})), "layers_block_type")


ARCHITECTURE = family(
    Zamba2Config,
    model_type="zamba2",
    hf_class="Zamba2ForCausalLM",
    description=description,
    names=_all_names,
    spelled=_spelled,
    written=lambda config: {"time_step_limit": written_limit(config.time_step_limit)},
    only={
        "partial_rotary_factor": only(1, 1.0),
        "use_long_context": only(False),  # versions of HF's code disagree on what it changes
        "use_shared_mlp_adapter": only(True),
    },
    # HF's model computes these sizes from others, initialises weights by these keys, or ignores them: convolutions have
    # biases whatever `use_conv_bias` says.
    dead="""
        attention_head_dim attention_hidden_size ffn_hidden_size head_dim hybrid_layer_ids kv_channels mamba_headdim
        num_query_groups time_step_floor time_step_max time_step_min use_conv_bias use_mem_eff_path
    """.split(),
)
