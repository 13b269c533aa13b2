"""The mixers and architectures of this package by name; each is imported when it is first asked for."""

MIXERS = {
    "gla": "ssmkit.models.gla:GLAMixer",
    "hgrn2": "ssmkit.models.hgrn2:HGRN2Mixer",
    "lru": "ssmkit.models.lru:LRUMixer",
    "mamba": "ssmkit.models.mamba:MambaMixer",
    "mamba2": "ssmkit.models.mamba2:Mamba2Mixer",
    "mamba3": "ssmkit.models.mamba3:Mamba3Mixer",
    "mamba_mlp": "ssmkit.models._mamba_family:MambaMLP",
    "mlstm": "ssmkit.models.mlstm:MLSTMMixer",
    "retnet": "ssmkit.models.retnet:RetNetMixer",
    "rg_lru": "ssmkit.models.rg_lru:RGLRUMixer",
    "rwkv6": "ssmkit.models.rwkv6:RWKV6Mixer",
    "rwkv6_channel": "ssmkit.models.rwkv6_channel:RWKV6ChannelMixer",
    "s5": "ssmkit.models.s5:S5Mixer",
    "shared_transformers": "ssmkit.models.shared_transformers:SharedTransformerStack",
    "short_conv": "ssmkit.models.short_conv:ShortConvMixer",
    "toy": "ssmkit.models.toy:ToyMixer",
}

ARCHITECTURES = {
    "mamba2": "ssmkit.models.mamba2_formats:ARCHITECTURE",
    "mamba": "ssmkit.models.mamba_formats:ARCHITECTURE",
    "falcon_h1": "ssmkit.models.hybrids.falcon_h1:ARCHITECTURE",
    "bamba": "ssmkit.models.hybrids.bamba:ARCHITECTURE",
    "granitemoehybrid": "ssmkit.models.hybrids.granitemoehybrid:ARCHITECTURE",
    "jamba": "ssmkit.models.hybrids.jamba:ARCHITECTURE",
    "lfm2": "ssmkit.models.hybrids.lfm2:ARCHITECTURE",
    "lfm2_moe": "ssmkit.models.hybrids.lfm2_moe:ARCHITECTURE",
    "mamba2_attention": "ssmkit.models.hybrids.mamba2_attention_formats:ARCHITECTURE",
    "nemotron_h": "ssmkit.models.hybrids.nemotron_h_formats:ARCHITECTURE",
    "recurrent_gemma": "ssmkit.models.hybrids.recurrent_gemma:ARCHITECTURE",
    "xlstm": "ssmkit.models.hybrids.xlstm:ARCHITECTURE",
    "zamba2": "ssmkit.models.hybrids.zamba2_formats:ARCHITECTURE",
}
