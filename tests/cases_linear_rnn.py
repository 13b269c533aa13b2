"""S5, LRU, RG-LRU, mLSTM and Mamba-3: what the laws hold for."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers import BF16_BOUND, WIDTH, Case, with_chunk_size

from ssmkit.models.lru import LRUMixer, LRURecurrence
from ssmkit.models.mamba3 import Mamba3Inputs, Mamba3Mixer, Mamba3Recurrence
from ssmkit.models.mlstm import MLSTMInputs, MLSTMMixer, MLSTMRecurrence
from ssmkit.models.rg_lru import RGLRUInputs, RGLRUMixer, RGLRURecurrence
from ssmkit.models.s5 import S5Mixer, S5Recurrence


Sample = Callable[[np.random.Generator, int], Any]


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(rng.normal(0.0, scale, shape), jnp.float32)


def features(width: int, scale: float = 1.0) -> Sample:
    return lambda rng, time: normal(rng, time, width, scale=scale)


def _complex(rng: np.random.Generator, time: int) -> jax.Array:
    return jax.lax.complex(normal(rng, time, 5), normal(rng, time, 5))


def _rg_lru_inputs(rng: np.random.Generator, time: int) -> RGLRUInputs:
    return RGLRUInputs(
        x=normal(rng, time, 6), input_gate=normal(rng, time, 6), recurrence_gate=normal(rng, time, 6, scale=3.0)
    )


def _mlstm_inputs(rng: np.random.Generator, time: int) -> MLSTMInputs:
    q, k, v = (normal(rng, time, 2, size) for size in (3, 3, 4))
    log_decay, log_write = (-jnp.abs(normal(rng, time, 2, scale=2.0)) for _ in range(2))
    return MLSTMInputs(q=q, k=k, v=v, log_decay=log_decay, log_write=log_write)


def _mamba3_inputs(rank: int) -> Sample:
    def sample(rng, time):
        x, x_before = (normal(rng, time, 2, rank, 4) for _ in range(2))
        B, B_before, C = (normal(rng, time, 2, rank, 6) for _ in range(3))
        dt, A, trap = (normal(rng, time, 2, scale=3.0) for _ in range(3))
        return Mamba3Inputs(x=x, x_before=x_before, B=B, B_before=B_before, C=C, dt=dt, A=A, trap=trap)

    return sample


def _mamba3_recurrence(A_activation: str) -> Callable[[jax.Array], Mamba3Recurrence]:
    return lambda key: Mamba3Recurrence(
        dt_bias=jnp.zeros((2,), jnp.float32),
        A_activation=A_activation,
        A_floor=1e-4,
        state_shape=(2, 6, 4),
        chunk_size=4,
    )


def _mixer(name: str, make: Callable[..., Any], *, scale: float = 1.0, **options: Any) -> Case:
    """In chunks that do not divide the sequence."""
    bound = BF16_BOUND if "dtype" in options else Case._field_defaults["bound"]
    return Case(name, lambda key: with_chunk_size(make(WIDTH, key=key, **options), 4), features(WIDTH, scale), bound)


# Small inputs: random eigenvalues forget little, and gates of large outputs would be all saturated.
_S5 = dict(state_size=12, blocks=2, scale=0.1)

BILINEAR = dict(discretization="bilinear", clip_eigs=False)

MAMBA3 = dict(state_size=6, head_dim=4, n_groups=2, rope_fraction=0.7)

OPERATORS = [
    Case(
        "s5-recurrence",
        lambda key: with_chunk_size(
            S5Recurrence(np.full(5, -0.5 + 1j), time_step_min=0.01, time_step_max=1.0, key=key), 4
        ),
        _complex,
    ),
    Case(
        "lru-recurrence",
        lambda key: with_chunk_size(LRURecurrence(5, r_min=0.1, r_max=0.9, max_phase=6.0, key=key), 4),
        _complex,
    ),
    Case("rg-lru-recurrence", lambda key: with_chunk_size(RGLRURecurrence(6, key=key), 4), _rg_lru_inputs),
    Case("mlstm-recurrence", lambda key: MLSTMRecurrence(state_shape=(2, 3, 5), chunk_size=4), _mlstm_inputs),
    Case("mamba3-recurrence", _mamba3_recurrence("heavy_tail"), _mamba3_inputs(1)),
    Case("mamba3-recurrence-mimo-softplus", _mamba3_recurrence("softplus"), _mamba3_inputs(3)),
]

MIXERS = [
    _mixer("s5-mixer", S5Mixer, **_S5),
    _mixer("s5-mixer-no-conj_sym-bilinear-unclipped", S5Mixer, **_S5, conj_sym=False, **BILINEAR),
    _mixer("lru-mixer", LRUMixer, state_size=5),
    _mixer("rg-lru-mixer", RGLRUMixer, intermediate_size=6, num_heads=3),
    _mixer("mlstm-mixer", MLSTMMixer, num_heads=2, expand_k=0.75),
    _mixer("mamba3-mixer", Mamba3Mixer, **MAMBA3),
    _mixer(
        "mamba3-mixer-mimo-softplus-norm",
        Mamba3Mixer,
        **MAMBA3,
        mimo_rank=3,
        A_activation="softplus",
        is_outproj_norm=True,
    ),
    _mixer("rg-lru-mixer-first-token", RGLRUMixer, num_heads=2, scale_first_token=False),
    _mixer("rg-lru-mixer-bf16", RGLRUMixer, num_heads=2, dtype=jnp.bfloat16),
]
