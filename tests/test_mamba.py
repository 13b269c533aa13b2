"""Mamba and Falcon-Mamba against the papers' equations, in float64."""

import dataclasses
from typing import Any

import against
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import published_state_spaces
import pytest
from cases_mamba import LANGUAGE_MODELS, mamba_config, mamba_mixer
from helpers import build, forward, relative_error

from ssmkit.models import Mamba, MambaConfig
from ssmkit.models.mamba import MambaInputs


# The recurrence.


def test_the_recurrence_is_the_selective_scan():
    """Values, final state and gradients, chunked and stepped, at decays from 1 - 1e-6 to 1e-30 in one sequence."""
    channels, size, time = 6, 5, against.TIME
    rng = np.random.default_rng(0)
    recurrence = mamba_mixer(jax.random.key(0), intermediate_size=channels).recurrence
    dt_bias = rng.normal(size=channels)
    # Where dt is 1 for the first state, log(decay) = -dt exp(A_log) is what is drawn.
    log_decay = against.log_decays(rng, time, channels)
    dt = np.where(-log_decay < 30, np.log(np.expm1(np.minimum(-log_decay, 30))), -log_decay) - dt_bias
    A_log = np.concatenate([np.zeros((channels, 1)), rng.uniform(-2, 2, (channels, size - 1))], axis=1)
    recurrence = eqx.tree_at(
        lambda r: (r.A_log, r.dt_bias), recurrence, (jnp.asarray(A_log, jnp.float32), jnp.asarray(dt_bias, jnp.float32))
    )
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    # The step size is the input's size too: B x is scaled so that no token drowns the others.
    x = draw(time, channels) * jnp.asarray(1 / np.maximum(-log_decay, 1e-2), jnp.float32)
    inputs = MambaInputs(x=x, dt=jnp.asarray(dt, jnp.float32), B=draw(time, size), C=draw(time, size))
    decays = np.exp(np.asarray(jax.vmap(recurrence.coefficients)(inputs).log_decay[..., 0], np.float64))
    assert np.min(decays) < 1e-25 and 0 < np.min(1 - decays) < 1e-5

    def oracle(recurrence, inputs, state):
        x, dt, B, C = inputs.x, inputs.dt, inputs.B, inputs.C
        with jax.numpy_rank_promotion("allow"):
            y, state = published_state_spaces.selective_scan(
                x, dt, B, C, recurrence.A_log, recurrence.dt_bias, state[..., 0]
            )
        return y[..., None], state[..., None]

    errors = against.errors(recurrence, oracle, inputs, draw(channels, size, 1))
    assert {name: error for name, error in errors.items() if not error <= against.BOUND} == {}


def test_the_step_size_is_float32_whatever_the_weights():
    config = mamba_config()
    model = Mamba(config, key=jax.random.key(0), dtype=jnp.bfloat16)
    mixer = model.blocks[0].mixer
    kept = (mixer.recurrence.A_log, mixer.recurrence.dt_bias, mixer.D, model.norm.weight, model.blocks[0].norm.weight)
    assert {array.dtype for array in kept} == {jnp.dtype(jnp.float32)}
    seen = []

    def advance(operator, inputs, state):
        if isinstance(inputs, MambaInputs):
            seen.extend(jax.tree.leaves((inputs, jax.vmap(operator.coefficients)(inputs))))
        return operator.chunk_scan(inputs, state)

    mixer.mix(jnp.ones((3, config.hidden_size), jnp.float32), mixer.init_cache(), advance)
    assert len(seen) == 8 and {array.dtype for array in seen} == {jnp.dtype(jnp.float32)}


# The model, in NumPy.


def _silu(x):
    return x / (1 + np.exp(-x))


def _rms(x, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def numpy_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Token by token, in float64, of the parameters of `model` under the names of its fields."""
    config = model.config
    rank, size = config.time_step_rank, config.state_size
    model = jax.tree.map(lambda array: np.asarray(array, np.float64), model)
    affine = lambda layer, x: x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    x = model.embedding.weight[tokens]
    for block in model.blocks:
        mixer = block.mixer
        u, z = np.split(affine(mixer.in_proj, _rms(x, config.layer_norm_epsilon) * block.norm.weight), 2, axis=-1)
        padded = np.concatenate([np.zeros((config.conv_kernel - 1, config.intermediate_size)), u])
        taps = [mixer.conv.weight[:, j] * padded[j : j + len(u)] for j in range(config.conv_kernel)]
        u = _silu(sum(taps) + (0 if mixer.conv.bias is None else mixer.conv.bias))
        parts = np.split(affine(mixer.x_proj, u), [rank, rank + size], axis=-1)
        if config.mixer_rms_eps is not None:
            parts = [_rms(part, config.mixer_rms_eps) for part in parts]
        dt = np.logaddexp(0, affine(mixer.dt_proj, parts[0]) + mixer.recurrence.dt_bias)
        h, y = np.zeros((config.intermediate_size, size)), []
        for u_t, dt_t, B, C in zip(u, dt, *parts[1:], strict=True):
            h = np.exp(-np.exp(mixer.recurrence.A_log) * dt_t[:, None]) * h + np.outer(dt_t * u_t, B)
            y.append(h @ C)
        x = x + affine(mixer.out_proj, (np.array(y) + mixer.D * u) * _silu(z))
    head = model.embedding if model.head is None else model.head
    return (_rms(x, config.layer_norm_epsilon) * model.norm.weight) @ head.weight[: config.vocab_size].T


@pytest.mark.parametrize("name", ["mamba", "falcon-mamba"])
def test_logits(name):
    model = build(next(case for case in LANGUAGE_MODELS if case.id == name))
    tokens = np.random.default_rng(0).integers(model.vocab_size, size=21)
    assert relative_error(forward(model, jnp.asarray(tokens)), numpy_logits(model, tokens)) < 4e-6


def test_initialisation_is_that_of_the_papers_code():
    config = MambaConfig(vocab_size=7, hidden_size=64, num_hidden_layers=4, tie_word_embeddings=False)
    mixer = Mamba(config, key=jax.random.key(0)).blocks[1].mixer
    recurrence = mixer.recurrence
    np.testing.assert_allclose(-jnp.exp(recurrence.A_log), -np.tile(np.arange(1.0, 17.0), (128, 1)), rtol=1e-6)
    dt = np.asarray(jax.nn.softplus(recurrence.dt_bias))
    assert 0.001 * 0.999 < dt.min() < 0.0015 and 0.07 < dt.max() < 0.1 * 1.001
    assert np.all(mixer.D == 1)
    for layer, bound in [
        (mixer.in_proj, 64**-0.5),
        (mixer.x_proj, 128**-0.5),
        (mixer.dt_proj, 4**-0.5),
        (mixer.out_proj, 128**-0.5 / 2),
    ]:
        assert 0.98 * bound < np.max(np.abs(layer.weight)) <= bound


# Configurations.


def test_sizes_follow_from_each_other():
    config = MambaConfig(vocab_size=50277, hidden_size=760, num_hidden_layers=1, pad_vocab_size_multiple=8)
    assert (config.intermediate_size, config.time_step_rank, config.padded_vocab_size) == (1520, 48, 50280)
    assert config == dataclasses.replace(config)
    wide = MambaConfig(vocab_size=65024, hidden_size=4096, num_hidden_layers=64, expand=16, intermediate_size=8192)
    assert (wide.intermediate_size, wide.time_step_rank) == (8192, 256)


def test_weights_without_norms_are_refused():
    with pytest.raises(ValueError, match="`use_mixer_rms_weights` must be False without `mixer_rms_eps`, got True"):
        mamba_mixer(jax.random.key(0), use_mixer_rms_weights=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_size": 0, "expand": -1}, "`expand` must be .* got -1; `state_size` must be an integer.* got 0"),
        ({"time_step_rank": 0}, "`time_step_rank` must be an integer, at least 1, got 0"),
        ({"intermediate_size": -3}, "`intermediate_size` must be an integer, at least 1, got -3"),
        ({"mixer_rms_eps": 0.0}, "`mixer_rms_eps` must be a number above 0, or None, got 0.0"),
        ({"chunk_size": 0}, "`chunk_size` must be an integer, at least 1, or None, got 0"),
        ({"hidden_act": "relu"}, "MambaConfig: `hidden_act` must be 'silu' or 'swish' .*, got 'relu'"),
        ({"time_step_min": -1.0}, "`time_step_min` must be a finite number above 0, got -1.0"),
    ],
)
def test_inconsistent_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mamba_config(**changes)
