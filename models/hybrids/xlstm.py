"""xLSTM-7B (arXiv 2503.13427): mLSTMs and gated MLPs."""

import dataclasses
from typing import Any

import ssmkit
from ssmkit.checkpoint import CheckpointError, Kind, Source, only

from .._config import AbstractCheckedConfig, above_0
from . import _names
from ._family import Content, described, family


@dataclasses.dataclass(frozen=True, kw_only=True)
class XLSTMConfig(AbstractCheckedConfig):
    """The configuration of an xLSTM model, under the key names of HF transformers' `xLSTMConfig`.

    **Arguments:**

    - `vocab_size`, `hidden_size`, `num_hidden_layers`, `bos_token_id`, `eos_token_id`, `pad_token_id`: as
        `ssmkit.LanguageModelConfig`. The head has its own matrix.
    - `num_heads`, `gate_soft_cap`, `eps`: as `MLSTMMixer`.
    - `qk_dim_factor`, `v_dim_factor`: the mixer's `expand_k` and `expand_v`.
    - `ffn_proj_factor`, `ffn_round_up_to_multiple_of`: the width of the MLPs' hidden layers as a multiple of
        `hidden_size`, and the number of which it is made a multiple.
    - `norm_eps`: the epsilon of every norm.
    - `output_logit_soft_cap`: the bound of the logits.
    - `weight_mode`: how files hold the projections of one input: `"single"`, or as one matrix, `"fused"`.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    vocab_size: int = 50304
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_heads: int = 8
    norm_eps: float = 1e-6
    qk_dim_factor: float = 0.5
    v_dim_factor: float = 1.0
    eps: float = 1e-6
    ffn_proj_factor: float = 2.667
    ffn_round_up_to_multiple_of: int = 64
    gate_soft_cap: float = 15.0
    output_logit_soft_cap: float = 30.0
    weight_mode: str = "single"
    tie_word_embeddings: bool = False
    bos_token_id: int | tuple[int, ...] | None = 0
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | tuple[int, ...] | None = 1

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        numbers = "norm_eps eps qk_dim_factor v_dim_factor ffn_proj_factor gate_soft_cap output_logit_soft_cap"
        words = {"weight_mode": only("single", "fused"), "tie_word_embeddings": only(False)}
        return dict.fromkeys(numbers.split(), above_0) | words

    def implied(self) -> dict[str, Any]:
        """No field follows from others."""
        return {}

    def contradictions(self) -> list[str]:
        """Messages if the heads do not divide the keys or the values."""
        sizes = {"qk_dim_factor": self.widths[0], "v_dim_factor": self.widths[1]}
        return [
            f"`hidden_size` * `{name}` must be a positive multiple of the {self.num_heads} heads, got {size}"
            for name, size in sizes.items()
            if size < 1 or size % self.num_heads
        ]

    @property
    def widths(self) -> tuple[int, int]:
        """The widths of all heads' keys, and of their values."""
        return int(self.hidden_size * self.qk_dim_factor), int(self.hidden_size * self.v_dim_factor)

    @property
    def mlp_size(self) -> int:
        """The width of the MLPs' hidden layers."""
        multiple = self.ffn_round_up_to_multiple_of
        return int((self.hidden_size * self.ffn_proj_factor + multiple - 1) // multiple * multiple)


def _description(config: XLSTMConfig) -> ssmkit.LanguageModelConfig:
    mlstm = {
        "mixer": "mlstm",
        "num_heads": config.num_heads,
        "expand_k": config.qk_dim_factor,
        "expand_v": config.v_dim_factor,
        "gate_soft_cap": config.gate_soft_cap,
        "norm_eps": config.norm_eps,
        "eps": config.eps,
    }
    mlp = {"mixer": "gated_mlp", "intermediate_size": config.mlp_size}
    cap = config.output_logit_soft_cap
    layers = config.num_hidden_layers * [mlstm, mlp]
    return described(config, layers=layers, final_logit_softcapping=cap)


def _mlstm(config: XLSTMConfig) -> _names.Table:
    shared = {"multihead_norm.weight": "multihead_norm.weight", **_names.linears("out_proj")}
    if config.weight_mode == "single":
        return shared | _names.linears("q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact")
    keys, values = config.widths
    widths = {"q": keys, "k": keys, "v": values, "ogate_preact": values}
    gates = {"igate_preact": config.num_heads, "fgate_preact": config.num_heads}
    return shared | _names.fused("qkv_opreact", widths) | _names.fused("ifgate_preact", gates)


def _all_names(config: XLSTMConfig) -> dict[str, Source]:
    mlstm, mlp = _mlstm(config), _names.gated_mlp("proj_up_gate", "proj_up", "proj_down")
    if config.weight_mode == "fused":
        mlp = _names.fused_gated_mlp("proj_up_gate_z", "proj_down", config.mlp_size)
    names = _names.ends(embedding="backbone.embeddings", norm="backbone.out_norm")
    for i in range(config.num_hidden_layers):
        layer, parts = f"backbone.blocks.{i}", (("norm_mlstm", "mlstm_layer", mlstm), ("norm_ffn", "ffn", mlp))
        for block, (norm, name, table) in enumerate(parts, 2 * i):
            names[f"blocks.{block}.norm.weight"] = Source(f"{layer}.{norm}.weight")
            names |= _names.under(f"blocks.{block}.mixer", f"{layer}.{name}", table)
    return names


def _spelled(content: Content) -> Content:
    """HF's code takes the width and the number of layers under two names each."""
    content = dict(content)
    for name, other in (("hidden_size", "embedding_dim"), ("num_hidden_layers", "num_blocks")):
        value = content.pop(other, None)
        if value is not None and content.setdefault(name, value) != value:
            raise CheckpointError(f"`{name}` and `{other}` must be equal, got {content[name]} and {value}.")
    return content


_DEAD = """
    add_embedding_dropout add_forward_backend_padding add_out_norm add_post_blocks_norm autocast_kernel_dtype
    cell_norm_eps chunk_size chunkwise_kernel force_bos_token_insert forward_backend_name head_dim
    igate_bias_init_range inference_state_dtype max_inference_chunksize mlstm_round_up_to_multiple_of mode
    norm_reduction_force_float32 return_last_states sequence_kernel step_kernel
"""

ARCHITECTURE = family(
    XLSTMConfig,
    model_type="xlstm",
    hf_class="xLSTMForCausalLM",
    description=_description,
    names=_all_names,
    spelled=_spelled,
    only={name: only(False) for name in ("use_bias", "add_post_norm", "add_qk_norm")},
    dead=_DEAD.split(),
    base="backbone.",
    embedding="embeddings",
)
