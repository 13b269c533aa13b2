"""Softmax attention: what the laws hold for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers import BF16_BOUND, VOCAB, WIDTH, Case, normal, random_tokens

import ssmkit
from ssmkit.models import GLAMixer, SharedTransformerStack


HEADS, GROUPS, DIM = 4, 2, 6
ADAPTERS = dict(norm_eps=0.1, adapter_rank=3, use_attention_adapters=True, num_kv_heads=1)
APART = dict(num_transformers=2, head_dim=5, rope_theta=None, use_bias=True)


def attention(**changes: Any) -> ssmkit.Attention:
    """Two heads share each key."""
    return ssmkit.Attention(**{"num_heads": HEADS, "head_dim": DIM, "num_kv_heads": GROUPS} | changes)


def inputs(rng: np.random.Generator, time: int, heads: int = HEADS, groups: int = GROUPS) -> ssmkit.AttentionInputs:
    """Queries, keys and values of `time` tokens."""
    draw = lambda heads: jnp.asarray(rng.normal(0.0, 1.0, (time, heads, DIM)), jnp.float32)
    return ssmkit.AttentionInputs(draw(heads), draw(groups), draw(groups))


def _operator(name: str, **changes: Any) -> Case:
    return Case(name, lambda key: attention(**changes), inputs)


def _mixer(name: str, **changes: Any) -> Case:
    options = {"num_heads": 2} | changes
    case = Case(name, lambda key: ssmkit.AttentionMixer(WIDTH, **options, key=key), normal(WIDTH))
    return case._replace(bound=BF16_BOUND) if "dtype" in changes else case


def _hybrid(key: jax.Array) -> ssmkit.LanguageModel:
    """A recurrence, a window, attention over everything, and an MLP."""
    mixers = [
        GLAMixer(WIDTH, num_heads=2, chunk_size=4, key=key),
        ssmkit.AttentionMixer(WIDTH, num_heads=2, sliding_window=3, key=key),
        ssmkit.AttentionMixer(WIDTH, num_heads=2, num_kv_heads=1, key=jax.random.fold_in(key, 1)),
        ssmkit.GatedMLP(WIDTH, intermediate_size=5, key=key),
    ]
    return ssmkit.LanguageModel(VOCAB, WIDTH, mixers, key=key)


def _shared_transformers(key: jax.Array, **changes: Any) -> SharedTransformerStack:
    """A layer without a transformer between two with one."""
    mixers = [GLAMixer(WIDTH, num_heads=2, chunk_size=4, key=jax.random.fold_in(key, i)) for i in range(3)]
    return SharedTransformerStack(
        WIDTH, mixers=mixers, places=(0, 2), num_heads=2, intermediate_size=5, **changes, key=key
    )


OPERATORS = [
    _operator("attention"),
    _operator("attention-window3", sliding_window=3),  # shorter than a sequence, in several blocks
    _operator("attention-window40-softcap", sliding_window=40, logit_softcapping=1.5),
    _operator("attention-part-rotated", rotary_dim=4, rope_theta=100.0, num_kv_heads=GROUPS),
    _operator("attention-no-positions", rope_theta=None, scale=0.7),
]
MIXERS = [
    _mixer("attention-mixer-norms-gate-biases", qk_norm=True, use_output_gate=True, use_bias=True),
    _mixer("attention-mixer-convolution", num_kv_heads=1, conv_kernel=3),
    _mixer("attention-mixer-window4-bf16", sliding_window=4, num_kv_heads=1, dtype=jnp.bfloat16),
    Case("shared-transformers-adapters", lambda key: _shared_transformers(key, **ADAPTERS), normal(WIDTH)),
    Case("shared-transformers-no-positions-biases", lambda key: _shared_transformers(key, **APART), normal(WIDTH)),
]
LANGUAGE_MODELS = [Case("hybrid", _hybrid, random_tokens)]
