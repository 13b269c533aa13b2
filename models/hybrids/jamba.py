"""Jamba (arXiv 2403.19887): Mamba and attention, each followed by an MLP or a mixture of experts."""

import dataclasses
from typing import Any

import ssmkit
from ssmkit.checkpoint import Kind, Reshape, Source, items, only, whole

from .._config import FOLLOWS, AbstractCheckedConfig, above_0, size_or_auto
from . import _names
from ._family import Content, described, family, hub_layers, layer, renamed


@dataclasses.dataclass(frozen=True, kw_only=True)
class JambaConfig(AbstractCheckedConfig):
    """The configuration of a Jamba model, under the key names of HF transformers' `JambaConfig`.

    **Arguments:**

    - `vocab_size`, `hidden_size`, `num_hidden_layers`, `tie_word_embeddings`, `bos_token_id`, `eos_token_id`,
        `pad_token_id`: as `ssmkit.LanguageModelConfig`.
    - `attn_layer_period`, `attn_layer_offset`: layer i is attention if i divided by the period leaves the offset. The
        other layers are Mamba.
    - `layers_block_type`: for each layer `"mamba"` or `"attention"`, which follows from these two.
    - `expert_layer_period`, `expert_layer_offset`: by the same rule, the layers that have experts. The other layers
        have an MLP, and all of them have one if `num_experts` is 1.
    - `num_experts`, `num_experts_per_tok`: the experts of a layer, and how many of them each token uses.
    - `intermediate_size`: the width of the hidden layers of experts and MLPs.
    - `mamba_d_state`, `mamba_d_conv`, `mamba_expand`, `mamba_dt_rank`, `mamba_conv_bias`, `mamba_proj_bias`: the
        Mamba layers, as `MambaMixer`. `mamba_dt_rank` follows from the width where it is left out or `"auto"`.
    - `num_attention_heads`, `num_key_value_heads`, `head_dim`: the attention layers, which have no positions.
    - `rms_norm_eps`: the epsilon of every norm.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    vocab_size: int = 65536
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    bos_token_id: int | tuple[int, ...] | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | tuple[int, ...] | None = 0
    num_experts: int = 16
    num_experts_per_tok: int = 2
    expert_layer_period: int = 2
    expert_layer_offset: int = 1
    attn_layer_period: int = 8
    attn_layer_offset: int = 4
    layers_block_type: tuple[str, ...] = FOLLOWS
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_dt_rank: int = FOLLOWS
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        return {
            "rms_norm_eps": above_0,
            **dict.fromkeys(("attn_layer_offset", "expert_layer_offset"), whole),
            "mamba_dt_rank": size_or_auto,
            "layers_block_type": items(only("mamba", "attention")),
        }

    def implied(self) -> dict[str, Any]:
        """The sizes that follow from others, and the kinds of the layers."""
        return {
            "num_key_value_heads": self.num_attention_heads,
            "mamba_dt_rank": -(-self.hidden_size // 16),
            "layers_block_type": self._kinds_of_layers(),
        }

    def contradictions(self) -> list[str]:
        """Messages if an offset is not below its period, or the layers are listed otherwise."""
        wrong = [
            f"`{name}_layer_offset` must be below `{name}_layer_period` = {period}, got {offset}"
            for name in ("attn", "expert")
            if (offset := getattr(self, f"{name}_layer_offset")) >= (period := getattr(self, f"{name}_layer_period"))
        ]
        if self.layers_block_type != self._kinds_of_layers():
            wrong.append("`layers_block_type` must be left out, or follow `attn_layer_period` and `attn_layer_offset`")
        return wrong

    def _kinds_of_layers(self) -> tuple[str, ...]:
        at = lambda i: i % self.attn_layer_period == self.attn_layer_offset
        return tuple("attention" if at(i) else "mamba" for i in range(self.num_hidden_layers))


def _layers(config: JambaConfig, mixers: dict[str, Any], mlp: Any, experts: Any) -> list[tuple[Any, Any]]:
    """The mixer and the MLP of each layer, of those given."""
    sparse = lambda i: config.num_experts > 1 and i % config.expert_layer_period == config.expert_layer_offset
    return [(mixers[kind], experts if sparse(i) else mlp) for i, kind in enumerate(config.layers_block_type)]


def _description(config: JambaConfig) -> ssmkit.LanguageModelConfig:
    mamba = """state_size=mamba_d_state expand=mamba_expand conv_kernel=mamba_d_conv time_step_rank=mamba_dt_rank
        use_bias=mamba_proj_bias use_conv_bias=mamba_conv_bias mixer_rms_eps=rms_norm_eps"""
    attention = "num_heads=num_attention_heads num_kv_heads=num_key_value_heads head_dim"
    mixers = {
        "mamba": layer("mamba", config, mamba, use_mixer_rms_weights=True),
        "attention": layer("attention", config, attention, rope_theta=None),
    }
    mlp = layer("gated_mlp", config, "intermediate_size")
    experts = layer("moe", config, "num_experts num_experts_per_tok intermediate_size", norm_topk_prob=False)
    layers = [each for pair in _layers(config, mixers, mlp, experts) for each in pair]
    return described(config, layers=layers, norm_eps=config.rms_norm_eps)


def _all_names(config: JambaConfig) -> dict[str, Source]:
    mamba = _names.linears("in_proj", "x_proj", "dt_proj", "out_proj") | {
        "conv.weight": ("conv1d.weight", Reshape((-1, 1, config.mamba_d_conv))),
        "conv.bias": "conv1d.bias",
        "recurrence.dt_bias": "dt_proj.bias",
        "recurrence.A_log": "A_log",
        "D": "D",
        **{f"{name}_norm.weight": f"{name.lower()}_layernorm.weight" for name in ("dt", "B", "C")},
    }
    experts = _names.experts(config.num_experts, gate="gate_proj", up="up_proj", down="down_proj")
    experts["router.weight"] = "router.weight"
    mixers = {"mamba": ("mamba", mamba), "attention": ("self_attn", _names.attention())}
    layers = _layers(config, mixers, ("feed_forward", _names.gated_mlp()), ("feed_forward", experts))
    norms = ("input_layernorm", "pre_ff_layernorm")
    return _names.ends(norm="model.final_layernorm") | _names.two_per_layer(layers, norms=norms)


def _spelled(content: Content) -> Content:
    """As for `family`."""
    others = {"layer_types": "layers_block_type", "num_local_experts": "num_experts"}
    return hub_layers(renamed(content, others), "layers_block_type")


ARCHITECTURE = family(
    JambaConfig,
    model_type="jamba",
    hf_class="JambaForCausalLM",
    description=_description,
    names=_all_names,
    spelled=_spelled,
    written=lambda config: {"layers_block_type": None},
    only={"hidden_act": only("silu", "swish"), "mamba_inner_layernorms": only(True)},
    dead=("calc_logits_for_entire_prompt", "n_ctx", "use_associative_scan", "use_mambapy"),
)
