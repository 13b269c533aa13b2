"""The mixers that a configuration can name."""

from .._plugins import Named


MIXERS = Named(
    "ssmkit.mixers",
    {
        "attention": "ssmkit.mixers._attention:AttentionMixer",
        "gated_mlp": "ssmkit.mixers._mlp:GatedMLP",
        "mlp": "ssmkit.mixers._mlp:MLP",
        "moe": "ssmkit.mixers._moe:MixtureOfExperts",
        "parallel": "ssmkit.mixers._parallel:ParallelMixer",
    },
    models="ssmkit.models.names:MIXERS",
)
