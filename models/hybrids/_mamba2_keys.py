"""The keys `mamba_*` of HF transformers, which its classes of several families share."""

from typing import Any

from ssmkit.checkpoint import Kind

from .._config import size_or_auto
from ._family import layer


def kinds() -> dict[str, Kind]:
    """The kinds of the keys whose types do not say enough."""
    return {"mamba_d_head": size_or_auto}


def implied(config: Any) -> dict[str, Any]:
    """The channels of a head."""
    return {"mamba_d_head": config.mamba_expand * config.hidden_size // config.mamba_n_heads}


def contradictions(config: Any) -> list[str]:
    """Messages if the heads do not make up the channels, or the groups do not divide the heads."""
    heads, channels, wrong = config.mamba_n_heads, config.mamba_expand * config.hidden_size, []
    if heads * config.mamba_d_head != channels:
        got = f"{heads} * {config.mamba_d_head}"
        wrong.append(f"`mamba_n_heads` * `mamba_d_head` must be `mamba_expand` * `hidden_size` = {channels}, got {got}")
    if heads % config.mamba_n_groups != 0:
        wrong.append(f"`mamba_n_groups` must divide `mamba_n_heads` = {heads}, got {config.mamba_n_groups}")
    return wrong


def mamba2_layer(config: Any, more: str = "") -> dict[str, Any]:
    """The table of a Mamba-2 layer, as in `ssmkit.LanguageModelConfig`.

    **Arguments:**

    - `config`: the configuration.
    - `more`: further fields that are keywords of the mixer, as for `layer`.
    """
    keywords = """num_heads=mamba_n_heads head_dim=mamba_d_head n_groups=mamba_n_groups state_size=mamba_d_state
        conv_kernel=mamba_d_conv expand=mamba_expand chunk_size=mamba_chunk_size use_conv_bias=mamba_conv_bias
        use_bias=mamba_proj_bias time_step_limit norm_eps=rms_norm_eps"""
    return layer("mamba2", config, f"{keywords} {more}")
