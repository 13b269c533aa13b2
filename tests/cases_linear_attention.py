"""RetNet, GLA, HGRN2 and RWKV-6: what the laws hold for, and the published recurrences they are to equal."""

from collections.abc import Callable
from typing import Any, NamedTuple

import against
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import published_attention
from helpers import Case

import ssmkit
from ssmkit.models.gla import GLAInputs, GLAMixer, GLARecurrence
from ssmkit.models.hgrn2 import HGRN2Inputs, HGRN2Mixer, HGRN2Recurrence
from ssmkit.models.hgrn2_model import HGRN2
from ssmkit.models.retnet import RetNetInputs, RetNetMixer, RetNetRecurrence
from ssmkit.models.rwkv6 import RWKV6Inputs, RWKV6Mixer, RWKV6Recurrence
from ssmkit.models.rwkv6_channel import RWKV6ChannelMixer


WIDTH, HEADS, KEY, VALUE = 12, 2, 3, 5
SHAPE = HEADS, KEY, VALUE


def _draws(make: Callable[..., Any], *sizes: int, scales: tuple[float, ...]) -> Callable:
    """Samples of inputs: arrays of `(time, HEADS, size)`, each with its own scale."""

    def sample(rng: np.random.Generator, time: int) -> Any:
        normal = lambda size, scale: jnp.asarray(rng.normal(0.0, scale, (time, HEADS, size)), jnp.float32)
        return make(*(normal(size, scale) for size, scale in zip(sizes, scales, strict=True)))

    return sample


def _features(rng: np.random.Generator, time: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=(time, WIDTH)), jnp.float32)


def _rwkv6(key: jax.Array) -> RWKV6Recurrence:
    decay, bonus = jax.random.normal(key, (2, HEADS, KEY), jnp.float32)
    return RWKV6Recurrence(time_decay=decay, bonus=bonus, state_shape=SHAPE, chunk_size=4)


def _retnet_mixer(key: jax.Array, **options: Any) -> RetNetMixer:
    return RetNetMixer(WIDTH, num_heads=2, expand_k=4 / 3, expand_v=5 / 6, chunk_size=4, key=key, **options)


def _gla_mixer(key: jax.Array, num_heads: int = 3, **options: Any) -> GLAMixer:
    return GLAMixer(WIDTH, num_heads=num_heads, gate_low_rank_dim=5, chunk_size=4, key=key, **options)


def _hgrn2_mixer(key: jax.Array, **options: Any) -> HGRN2Mixer:
    bound = jnp.linspace(0.0, 0.95, 15)
    return HGRN2Mixer(WIDTH, state_size=5, num_heads=3, lower_bound=bound, chunk_size=4, key=key, **options)


def _hgrn2_model(key: jax.Array) -> HGRN2:
    return HGRN2(helpers.VOCAB, 8, 2, state_size=4, intermediate_size=5, chunk_size=4, key=key)


# What flash-linear-attention's configurations may say.
OPTIONS: dict[str, Any] = dict(use_short_conv=True, conv_kernel=3, num_kv_heads=1, use_output_gate=False)


def _rwkv6_mixer(key: jax.Array) -> RWKV6Mixer:
    return RWKV6Mixer(
        WIDTH,
        num_heads=3,
        proj_low_rank_dim=5,
        gate_low_rank_dim=7,
        layer_idx=1,
        num_hidden_layers=3,
        chunk_size=4,
        key=key,
    )


OPERATORS = [
    Case(
        "retnet-recurrence",
        lambda key: RetNetRecurrence(SHAPE, chunk_size=4),
        _draws(RetNetInputs, KEY, KEY, VALUE, scales=(1, 1, 1)),
    ),
    Case(
        "gla-recurrence",
        lambda key: GLARecurrence(SHAPE, chunk_size=4),
        _draws(GLAInputs, KEY, KEY, VALUE, KEY, scales=(1, 1, 1, 9)),
    ),
    Case(
        "hgrn2-recurrence",
        lambda key: HGRN2Recurrence(SHAPE, 0.3, chunk_size=4),
        _draws(HGRN2Inputs, KEY, KEY, VALUE, scales=(1, 3, 1)),
    ),
    Case("rwkv6-recurrence", _rwkv6, _draws(RWKV6Inputs, KEY, KEY, VALUE, KEY, scales=(1, 1, 1, 3))),
]
MIXERS = [
    Case("retnet-mixer", _retnet_mixer, _features),
    Case("retnet-mixer-options", lambda key: _retnet_mixer(key, **OPTIONS), _features),
    Case("gla-mixer", _gla_mixer, _features),
    Case("gla-mixer-options", lambda key: _gla_mixer(key, num_heads=2, **OPTIONS, clamp_min=-0.5), _features),
    Case("gla-mixer-bf16", lambda key: _gla_mixer(key, dtype=jnp.bfloat16), _features, helpers.BF16_BOUND),
    Case("hgrn2-mixer", _hgrn2_mixer, _features),
    Case("hgrn2-mixer-conv", lambda key: _hgrn2_mixer(key, use_short_conv=True, use_conv_bias=True), _features),
    Case("rwkv6-mixer", _rwkv6_mixer, _features),
    Case("rwkv6-channel-mixer", lambda key: RWKV6ChannelMixer(WIDTH, intermediate_size=7, key=key), _features),
]
LANGUAGE_MODELS = [Case("hgrn2", _hgrn2_model, helpers.random_tokens)]


class Oracle(NamedTuple):
    """A recurrence and the function of `published` that it is to equal, from raw inputs on."""

    id: str
    make: Callable[[], ssmkit.DiagonalChunkedRecurrence[Any]]
    oracle: Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]
    sample: Callable[[np.random.Generator, int], Any]


def _logit(log_decay: np.ndarray) -> np.ndarray:
    """The gate whose sigmoid has this logarithm."""
    return log_decay - np.log(-np.expm1(log_decay))


def _sampler(make: Callable[..., Any], gate: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """Samples of inputs made from two arrays of keys, one of values and the gate that `gate` has for the decays."""

    def sample(rng: np.random.Generator, time: int) -> Any:
        arrays = (
            rng.normal(size=(time, HEADS, KEY)),
            rng.normal(size=(time, HEADS, KEY)),
            rng.normal(size=(time, HEADS, VALUE)),
            gate(against.log_decays(rng, time, HEADS, KEY)),
        )
        return make(*(jnp.asarray(array, jnp.float32) for array in arrays))

    return sample


def _hgrn2(name: str, bound: np.ndarray | None) -> Oracle:
    """With these bounds of every key channel."""

    def gate(log_decay: np.ndarray) -> np.ndarray:
        # No gate is below its lower bound: there the range of the logarithms is made shorter, not cut off.
        if bound is None:
            return _logit(log_decay)
        low, high, floor = np.log(1e-6), np.log(-np.log(1e-30)), np.log(bound)
        log_decay = -np.exp(low + (np.log(-log_decay) - low) / (high - low) * (np.log(-0.999 * floor) - low))
        return np.log(bound * np.expm1(log_decay - floor)) - np.log(-np.expm1(log_decay))

    return Oracle(
        f"hgrn2-{name}",
        lambda: HGRN2Recurrence(SHAPE, bound),
        lambda m, x, s: published_attention.hgrn2(x.q, x.f, x.i, 0.0 if bound is None else m.lower_bound, s),
        _sampler(lambda q, _, i, f: HGRN2Inputs(q=q, f=f, i=i), gate),
    )


ORACLES = [
    Oracle(
        "retnet",  # its decays are constants
        lambda: RetNetRecurrence(SHAPE),
        lambda m, x, s: published_attention.retention(x.q, x.k, x.v, s),
        _draws(RetNetInputs, KEY, KEY, VALUE, scales=(1, 1, 1)),
    ),
    Oracle(
        "gla",
        lambda: GLARecurrence(SHAPE),
        lambda m, x, s: published_attention.gla(x.q, x.k, x.v, x.gate, s),
        _sampler(GLAInputs, lambda log_decay: _logit(16 * log_decay)),
    ),
    _hgrn2("plain", None),
    _hgrn2("bounds", np.asarray([[1e-12, 0.3, 0.6], [1e-3, 0.1, 0.9]])),
    Oracle(
        "rwkv6",
        lambda: _rwkv6(jax.random.key(3)),
        lambda m, x, s: published_attention.rwkv6(x.r, x.k, x.v, x.w + m.time_decay[None], m.bonus, s),
        _sampler(RWKV6Inputs, lambda log_decay: np.log(-log_decay) - np.asarray(_rwkv6(jax.random.key(3)).time_decay)),
    ),
]
