"""Mamba and FalconMamba: what the laws hold for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers import BF16_BOUND, VOCAB, Case, normal, random_tokens

from ssmkit.models import Mamba, MambaConfig, MambaMixer
from ssmkit.models._mamba_family import MambaMLP
from ssmkit.models.mamba import MambaInputs


WIDTH = 6


def mamba_config(**changes: Any) -> MambaConfig:
    """Small and awkward: no two sizes alike, and chunks that do not divide the sequence."""
    sizes = dict(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=1, state_size=5, time_step_rank=3, chunk_size=4)
    return MambaConfig(**sizes | changes)


def inputs(rng: np.random.Generator, time: int, *, channels: int = 2 * WIDTH, size: int = 5) -> MambaInputs:
    """Inputs of `time` tokens, with step sizes between hardly any and several."""
    draw = lambda scale, axis: jnp.asarray(rng.normal(0.0, scale, (time, axis)), jnp.float32)
    return MambaInputs(x=draw(1.0, channels), dt=draw(3.0, channels), B=draw(1.0, size), C=draw(1.0, size))


def mamba_mixer(key: jax.Array, **changes: Any) -> MambaMixer:
    """As `mamba_config`."""
    return MambaMixer(WIDTH, **dict(state_size=5, time_step_rank=3, chunk_size=4) | changes, key=key)


def _mixer(name: str, **changes: Any) -> Case:
    return Case(name, lambda key: mamba_mixer(key, **changes), normal(WIDTH))


def _case(build: type, sample: Any, name: str, dtype: Any = jnp.float32, **changes: Any) -> Case:
    config = mamba_config(**changes)
    case = Case(name, lambda key: build(config, key=key, dtype=dtype), sample)
    return case if dtype == jnp.float32 else case._replace(bound=BF16_BOUND)


FALCON = {"mixer_rms_eps": 1e-6, "expand": 16, "intermediate_size": 9, "tie_word_embeddings": False}

OPERATORS = [Case("mamba-recurrence", lambda key: mamba_mixer(key).recurrence, inputs)]
MIXERS = [
    _mixer("mamba-mixer-biases-kernel3", use_bias=True, conv_kernel=3, time_step_rank=None),
    _mixer("mamba-mixer-one-state-no-conv-bias-kernel1", state_size=1, use_conv_bias=False, conv_kernel=1),
    _mixer("mamba-mixer-falcon", mixer_rms_eps=1e-6, expand=16, intermediate_size=9),
    _mixer("mamba-mixer-norm-weights", mixer_rms_eps=1e-3, use_mixer_rms_weights=True),
    Case("mamba-mlp-block", lambda key: Mamba(mamba_config(d_intermediate=7), key=key).blocks[1], normal(WIDTH)),
    Case("mamba-mlp", lambda key: MambaMLP(WIDTH, intermediate_size=7, key=key), normal(WIDTH)),
]
LANGUAGE_MODELS = [
    _case(Mamba, random_tokens, "mamba", num_hidden_layers=2),
    _case(Mamba, random_tokens, "falcon-mamba", use_bias=True, pad_vocab_size_multiple=8, **FALCON),
    _case(
        Mamba,
        random_tokens,
        "mamba-bf16-padded-vocab",
        jnp.bfloat16,
        residual_in_fp32=False,
        pad_vocab_size_multiple=8,
    ),
]
