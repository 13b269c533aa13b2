"""Everything the laws hold for: every operator, mixer and language model of the package."""

from collections.abc import Callable

import cases_attention
import cases_linear_attention
import cases_linear_rnn
import cases_mamba
import cases_moe
import jax
import jax.numpy as jnp
import numpy as np
from helpers import (
    BF16_BOUND,
    HEAD_DIM,
    HEADS,
    STATE,
    VOCAB,
    WIDTH,
    Case,
    mamba2_config,
    normal,
    random_tokens,
)

import ssmkit
from ssmkit.models import Mamba2, Mamba2Mixer, ShortConvMixer, ToySSM
from ssmkit.models.mamba2 import Mamba2Inputs
from ssmkit.models.toy import ToyMixer, ToyRecurrence


def _mamba2_inputs(groups: int) -> Callable[[np.random.Generator, int], Mamba2Inputs]:
    def sample(rng, time):
        x, B, C, dt = (
            normal(*shape, scale=scale)(rng, time)
            for shape, scale in [
                ((HEADS, HEAD_DIM), 1.0),
                ((groups, STATE), 1.0),
                ((groups, STATE), 1.0),
                ((HEADS,), 3.0),
            ]
        )
        return Mamba2Inputs(x=x, B=B, C=C, dt=dt)

    return sample


def _mixer(key: jax.Array, **changes) -> Mamba2Mixer:
    """Small and awkward, as `mamba2_config`."""
    sizes = dict(state_size=STATE, head_dim=HEAD_DIM, chunk_size=4)
    return Mamba2Mixer(WIDTH, **sizes | changes, key=key)


def _mamba2_recurrence(groups: int, **changes) -> Case:
    name = "-".join(["mamba2-recurrence", f"groups{groups}", *changes])
    return Case(name, lambda key: _mixer(key, n_groups=groups, **changes).recurrence, _mamba2_inputs(groups))


def _gates(rng: np.random.Generator, time: int) -> ssmkit.Gates:
    return ssmkit.Gates(forget=-jnp.abs(normal(3)(rng, time)), input=normal(3, scale=3.0)(rng, time))


def _conv(kernel_size: int, **options) -> Case:
    name = "-".join([f"conv-kernel{kernel_size}", *options])
    return Case(name, lambda key: ssmkit.CausalConv1d(3, kernel_size, key=key, **options), normal(3))


def _mamba2_mixer(name: str, **changes) -> Case:
    return Case(name, lambda key: _mixer(key, **changes), normal(WIDTH))


def _toy_mixer(key) -> ToyMixer:
    return ToyMixer(WIDTH, num_heads=2, chunk_size=4, key=key)


def _parallel(key) -> ssmkit.ParallelMixer:
    """A recurrence with factors beside attention."""
    mixers = [_mixer(key, multipliers=(0.5, 2.0, 3.0, 0.2, 1.5)), ssmkit.AttentionMixer(WIDTH, num_heads=2, key=key)]
    return ssmkit.ParallelMixer(mixers, in_multipliers=(2.0, 0.5), out_multipliers=(0.3, 1.0))


def _gated_mlp(key) -> ssmkit.GatedMLP:
    return ssmkit.GatedMLP(WIDTH, intermediate_size=5, use_bias=True, multipliers=(0.5, 3.0), key=key)


def _mamba2(name: str, *, dtype=jnp.float32, bound=Case._field_defaults["bound"], **changes) -> Case:
    config = mamba2_config(**changes)
    return Case(name, lambda key: Mamba2(config, key=key, dtype=dtype), random_tokens, bound)


def _language_model(key) -> ssmkit.LanguageModel:
    """Mixers of different kinds, norms of different kinds, an untied head, and every option."""
    mixers = [_toy_mixer(key), ssmkit.GatedMLP(WIDTH, intermediate_size=5, key=key), _mixer(key)]
    return ssmkit.LanguageModel(
        VOCAB,
        WIDTH,
        mixers,
        norm=ssmkit.ZeroCentredRMSNorm,
        residual_multiplier=0.7,
        post_norm=ssmkit.LayerNorm,
        embedding_multiplier=3.0,
        logit_multiplier=0.3,
        embedding_norm=ssmkit.LayerNorm,
        final_logit_softcapping=2.0,
        key=key,
    )


def _scanned(key) -> ssmkit.LanguageModel:
    """A recurrence, then a loop over twice a recurrence and attention."""
    attention = lambda i: ssmkit.AttentionMixer(WIDTH, num_heads=2, key=jax.random.fold_in(key, i))
    mixers = [_mixer(key), _toy_mixer(key), attention(0), _toy_mixer(key), attention(1)]
    return ssmkit.scan_layers(ssmkit.LanguageModel(VOCAB, WIDTH, mixers, key=key))


LIMITS = (0.01, 0.2)

OPERATORS = [
    _mamba2_recurrence(1),
    _mamba2_recurrence(2, time_step_limit=LIMITS),
    Case("toy-recurrence", lambda key: ToyRecurrence(state_shape=(2, 3, 3), chunk_size=4), normal(2, 10)),
    Case("shift", lambda key: ssmkit.Shift((3, 2)), normal(3, 2)),
    Case("stabiliser", lambda key: ssmkit.Stabiliser(3), _gates),
    Case("running-phase", lambda key: ssmkit.RunningPhase((3, 2)), normal(3, 2)),
    _conv(1),
    _conv(4),
    _conv(4, use_bias=False, dtype=jnp.bfloat16),
]
MIXERS = [  # more of them are inside the language models below
    _mamba2_mixer("mamba2-mixer-groups2-biases", n_groups=2, use_bias=True),
    _mamba2_mixer("mamba2-mixer-no-conv-bias-kernel1", use_conv_bias=False, conv_kernel=1, use_output_bias=True),
    Case("toy-mixer", _toy_mixer, normal(WIDTH)),
    Case("gated-mlp", _gated_mlp, normal(WIDTH)),
    Case("residual-block", lambda key: ssmkit.ResidualBlock(ssmkit.RMSNorm(WIDTH), _toy_mixer(key)), normal(WIDTH)),
    Case("parallel", _parallel, normal(WIDTH)),
    Case("short-conv", lambda key: ShortConvMixer(WIDTH, conv_kernel=4, use_bias=True, key=key), normal(WIDTH)),
]
LANGUAGE_MODELS = [
    _mamba2("mamba2", num_hidden_layers=2),
    _mamba2(
        "mamba2-groups2-biases-limits-D_has_hdim-tied",
        n_groups=2,
        use_bias=True,
        time_step_limit=LIMITS,
        D_has_hdim=True,
        tie_word_embeddings=True,
    ),
    _mamba2(
        "mamba2-bf16-no-conv-bias-padded-vocab",
        dtype=jnp.bfloat16,
        bound=BF16_BOUND,
        use_conv_bias=False,
        residual_in_fp32=False,
        pad_vocab_size_multiple=8,
    ),
    _mamba2(
        "mamba2-part-of-the-channels-norm-first-mlp",
        num_hidden_layers=1,
        d_ssm=8,
        norm_before_gate=True,
        d_intermediate=7,
        rms_norm=False,
    ),
    Case("toy", lambda key: ToySSM(VOCAB, WIDTH, 2, 2, key=key), random_tokens),
    Case("language-model", _language_model, random_tokens),
]
OPERATORS += (
    cases_attention.OPERATORS + cases_linear_attention.OPERATORS + cases_linear_rnn.OPERATORS + cases_mamba.OPERATORS
)
MIXERS += cases_attention.MIXERS + cases_linear_attention.MIXERS + cases_linear_rnn.MIXERS + cases_mamba.MIXERS
MIXERS += cases_moe.MIXERS
SCANNED = [Case("scanned", _scanned, random_tokens)]
LANGUAGE_MODELS += (
    cases_attention.LANGUAGE_MODELS + cases_linear_attention.LANGUAGE_MODELS + cases_mamba.LANGUAGE_MODELS + SCANNED
)
LANGUAGE_MODELS += cases_moe.LANGUAGE_MODELS
EVERYTHING = [*OPERATORS, *MIXERS, *LANGUAGE_MODELS]
