"""Mixtures of experts: what the laws hold for."""

from typing import Any

import jax
import jax.numpy as jnp
from helpers import BF16_BOUND, VOCAB, WIDTH, Case, normal, random_tokens

import ssmkit
from ssmkit.models import GLAMixer


GROUPS = dict(router="sigmoid", use_expert_bias=True, n_group=3, topk_group=2, latent_size=5)


def mixture(key: jax.Array, **changes: Any) -> ssmkit.MixtureOfExperts:
    """Three experts of each token, of six: fewer tokens than an expert has room for, and more."""
    options = dict(num_experts=6, num_experts_per_tok=3, intermediate_size=5) | changes
    return ssmkit.MixtureOfExperts(WIDTH, **options, key=key)


def _mixer(name: str, **changes: Any) -> Case:
    case = Case(name, lambda key: mixture(key, **changes), normal(WIDTH))
    return case._replace(bound=BF16_BOUND) if "dtype" in changes else case


def _model(key: jax.Array) -> ssmkit.LanguageModel:
    """A recurrence, experts, and attention."""
    mixers = [
        GLAMixer(WIDTH, num_heads=2, chunk_size=4, key=key),
        mixture(key, shared_intermediate_size=3, shared_expert_gate=True),
        ssmkit.AttentionMixer(WIDTH, num_heads=2, key=key),
    ]
    return ssmkit.LanguageModel(VOCAB, WIDTH, mixers, key=key)


MIXERS = [
    _mixer("experts-groups-latent-shared", **GROUPS, shared_intermediate_size=4, use_bias=True),
    _mixer("experts-bf16", gated=False, activation="relu2", dtype=jnp.bfloat16),
    Case("mlp", lambda key: ssmkit.MLP(WIDTH, intermediate_size=5, activation="relu2", key=key), normal(WIDTH)),
]
LANGUAGE_MODELS = [Case("experts", _model, random_tokens)]
