"""RecurrentGemma (arXiv 2404.07839): RG-LRUs, and attention in a window with one key head."""

import dataclasses
import itertools
import math
from typing import Any

import jax.numpy as jnp

import ssmkit
from ssmkit.checkpoint import Kind, Reshape, Source, Transpose, items, only

from .._config import FOLLOWS, AbstractCheckedConfig, above_0
from . import _names, _rope
from ._family import described, family, renamed


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentGemmaConfig(AbstractCheckedConfig):
    """The configuration of a RecurrentGemma model, under the key names of HF transformers' `RecurrentGemmaConfig`.

    **Arguments:**

    - `vocab_size`, `hidden_size`, `num_hidden_layers`, `tie_word_embeddings`, `bos_token_id`, `eos_token_id`,
        `pad_token_id`: as `ssmkit.LanguageModelConfig`.
    - `block_types`: the kinds of the layers, `"recurrent"` or `"attention"`, repeated as often as is needed.
    - `intermediate_size`: twice the width of the MLPs' hidden layers, which is rounded down.
    - `num_attention_heads`: the heads of the attention layers, and the blocks of the recurrent layers' gates.
    - `num_key_value_heads`, `head_dim`, `attention_window_size`, `attention_bias`, `rope_theta`,
        `partial_rotary_factor`: as `ssmkit.AttentionMixer`.
    - `lru_width`: the channels of the recurrent layers; `hidden_size` where it is left out.
    - `conv1d_width`: the taps of their convolutions.
    - `logits_soft_cap`, `rms_norm_eps`: the bound of the logits, and the epsilon of every norm.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    vocab_size: int = 256000
    hidden_size: int = 2560
    intermediate_size: int = 7680
    num_hidden_layers: int = 26
    num_attention_heads: int = 10
    num_key_value_heads: int = FOLLOWS
    head_dim: int = FOLLOWS
    lru_width: int = FOLLOWS
    attention_window_size: int = 2048
    attention_bias: bool = False
    conv1d_width: int = 4
    logits_soft_cap: float = 30.0
    rms_norm_eps: float = 1e-6
    block_types: tuple[str, ...] = ("recurrent", "recurrent", "attention")
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.5
    tie_word_embeddings: bool = True
    bos_token_id: int | tuple[int, ...] | None = 2
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | tuple[int, ...] | None = 0

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """As `AbstractCheckedConfig.kinds`."""
        numbers = ("logits_soft_cap", "rms_norm_eps", "rope_theta", "partial_rotary_factor")
        return {"block_types": items(only("recurrent", "attention")), **dict.fromkeys(numbers, above_0)}

    def implied(self) -> dict[str, Any]:
        """The sizes that follow from others."""
        return {
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.hidden_size // self.num_attention_heads,
            "lru_width": self.hidden_size,
        }

    def contradictions(self) -> list[str]:
        """A message if there are no kinds of layers."""
        return [] if self.block_types else ["`block_types` must name at least one kind of layer"]

    @property
    def layers(self) -> tuple[str, ...]:
        """The kind of every layer."""
        return tuple(itertools.islice(itertools.cycle(self.block_types), self.num_hidden_layers))


def _description(config: RecurrentGemmaConfig) -> ssmkit.LanguageModelConfig:
    mixers = {
        "recurrent": {
            "mixer": "rg_lru",
            "intermediate_size": config.lru_width,
            "num_heads": config.num_attention_heads,
            "conv_kernel": config.conv1d_width,
            "scale_first_token": False,
        },
        "attention": {
            "mixer": "attention",
            "num_heads": config.num_attention_heads,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "sliding_window": config.attention_window_size,
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.partial_rotary_factor,
            "use_bias": config.attention_bias,
            "use_output_bias": True,
        },
    }
    hidden = config.intermediate_size // 2
    mlp = {"mixer": "gated_mlp", "intermediate_size": hidden, "activation": "gelu", "use_bias": True}
    return described(
        config,
        layers=[layer for kind in config.layers for layer in (mixers[kind], mlp)],
        norm="zero_centred_rms_norm",
        norm_eps=config.rms_norm_eps,
        embedding_multiplier=float(jnp.dtype(jnp.bfloat16).type(math.sqrt(config.hidden_size))),
        final_logit_softcapping=config.logits_soft_cap,
    )


def _recurrent(config: RecurrentGemmaConfig) -> _names.Table:
    table: dict[str, Any] = {
        "conv.weight": ("conv_1d.weight", Reshape((-1, 1, config.conv1d_width))),
        "conv.bias": "conv_1d.bias",
        "recurrence.Lambda": "rg_lru.recurrent_param",
        **_names.linears("linear_x", "linear_y", "linear_out"),
    }
    for path, name in (("input_gate", "input_gate"), ("recurrence_gate", "recurrent_gate")):
        table[f"{path}.weight"] = (f"rg_lru.{name}_weight", Transpose((0, 2, 1)))
        table[f"{path}.bias"] = (f"rg_lru.{name}_bias", Reshape((config.num_attention_heads, -1)))
    return table


def _all_names(config: RecurrentGemmaConfig) -> dict[str, Source]:
    mixers = {
        "recurrent": ("temporal_block", _recurrent(config)),
        "attention": ("temporal_block", _names.attention()),
    }
    mlp, norms = ("mlp_block", _names.gated_mlp()), ("temporal_pre_norm", "channel_pre_norm")
    layers = _names.two_per_layer([(mixers[kind], mlp) for kind in config.layers], norms=norms)
    return _names.ends(norm="model.final_norm") | layers


ARCHITECTURE = family(
    RecurrentGemmaConfig,
    model_type="recurrent_gemma",
    hf_class="RecurrentGemmaForCausalLM",
    description=_description,
    names=_all_names,
    spelled=lambda content: renamed(_rope.flat(content), {"_block_types": "block_types"}),
    only={"hidden_activation": only("gelu_pytorch_tanh"), "embeddings_scale_by_sqrt_dim": only(True)},
    dead=("final_w_init_variance_scale", "w_init_variance_scale"),
)
