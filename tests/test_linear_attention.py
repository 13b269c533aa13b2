"""RetNet, GLA, HGRN2 and RWKV-6 against their papers' equations in float64, around their recurrences."""

import functools

import against
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from cases_linear_attention import MIXERS, WIDTH
from helpers import build, jit, over, relative_error

from ssmkit.models.gla import GLAInputs, GLAMixer, GLARecurrence
from ssmkit.models.hgrn2 import HGRN2Inputs, HGRN2Mixer, HGRN2Recurrence
from ssmkit.models.retnet import RetNetMixer
from ssmkit.models.rwkv6 import RWKV6Inputs, RWKV6Mixer, RWKV6Recurrence
from ssmkit.models.rwkv6_channel import RWKV6ChannelMixer


FLOAT32 = over(MIXERS, "retnet-mixer", "gla-mixer", "hgrn2-mixer", "rwkv6-mixer")


EXTREME = np.array([-100.0, -88.0, -30.0, -1e-3, 0.0, 1e-3, 30.0, 88.0, 100.0])


def _all(size: int) -> jax.Array:
    return jnp.ones((len(EXTREME), 1, size), jnp.float32)


@pytest.mark.parametrize(
    ("recurrence", "inputs"),
    [
        (GLARecurrence((1, 1, 1)), lambda gate: GLAInputs(_all(1), _all(1), _all(1), gate)),
        (HGRN2Recurrence((1, 1, 1)), lambda f: HGRN2Inputs(f, f, _all(1))),
        (HGRN2Recurrence((1, 1, 1), 0.3), lambda f: HGRN2Inputs(f, f, _all(1))),
        (HGRN2Recurrence((1, 1, 1), 1e-12), lambda f: HGRN2Inputs(f, f, _all(1))),
        (
            RWKV6Recurrence(*jnp.ones((2, 1, 1), jnp.float32), (1, 1, 1)),
            lambda w: RWKV6Inputs(_all(1), _all(1), _all(1), w),
        ),
    ],
    ids=["gla", "hgrn2", "hgrn2-bound", "hgrn2-tiny-bound", "rwkv6"],
)
def test_no_gate_makes_a_number_that_is_not_finite(recurrence, inputs):
    def run(gate):
        outputs, final = recurrence.chunk_scan(inputs(gate), recurrence.init_state())
        log_decay = jax.vmap(recurrence.coefficients)(inputs(gate)).log_decay
        return jnp.sum(outputs) + jnp.sum(final) + jnp.sum(log_decay), log_decay

    gate = jnp.asarray(EXTREME[:, None, None], jnp.float32)
    (total, log_decay), gradient = jit(jax.value_and_grad(run, has_aux=True))(gate)
    assert log_decay.dtype == jnp.float32 and (log_decay <= 0).all()
    assert np.isfinite(log_decay).all() and np.isfinite(total) and np.isfinite(gradient).all()
    assert (np.asarray(gradient)[3:6] != 0).all()  # no branch is flat where the gate is open


# Mixers, in float64 and in plain array operations. `state` is the recurrence's, zero.


def _heads(x, weight, heads):
    return (x @ weight.T).reshape(len(x), heads, -1)


def _rms(x, weight, eps):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps) * jnp.broadcast_to(weight, x.shape)


def _gated(m, x, o):
    """The norm of every head, the gate and the output projection that RetNet and GLA share."""
    normed = _rms(o, m.norm.weight, 1e-6).reshape(len(x), -1)
    return (normed * jax.nn.silu(x @ m.g_proj.weight.T)) @ m.o_proj.weight.T


def retnet(m, x, state):
    q, k, v = (_heads(x, proj.weight, 2) for proj in (m.q_proj, m.k_proj, m.v_proj))
    positions = jnp.arange(len(x))
    o, state = published.retention(published.rotate(q, positions), published.rotate(k, positions), v, state)
    return _gated(m, x, o), state


def gla(m, x, state):
    q, k, v = (_heads(x, proj.weight, 3) for proj in (m.q_proj, m.k_proj, m.v_proj))
    gate = x @ m.gk_down.weight.T @ m.gk_up.weight.T
    gate = (gate + jnp.broadcast_to(m.gk_up.bias, gate.shape)).reshape(q.shape)
    o, state = published.gla(q, k, v, gate, state)
    return _gated(m, x, o), state


def hgrn2(m, x, state):
    q, f, i = (_heads(x, proj.weight, 3) for proj in (m.q_proj, m.f_proj, m.i_proj))
    o, state = published.hgrn2(q, f, i, 0.3, state)
    return _rms(o.reshape(x.shape), m.norm.weight, 1e-5) @ m.o_proj.weight.T, state


def rwkv6(m, x, state):
    past = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    mix = lambda mu: x + (past - x) * mu  # noqa: E731
    low = jnp.tanh(mix(jnp.broadcast_to(m.lerp.mu_x, x.shape)) @ m.lerp.down.weight.T)
    rank = m.lerp.up.weight.shape[2]
    xs = [mix(m.lerp.mu[j][None] + low[:, j * rank : (j + 1) * rank] @ m.lerp.up.weight[j].T) for j in range(5)]
    w = jnp.tanh(xs[1] @ m.decay_down.weight.T) @ m.decay_up.weight.T
    w = w.reshape(len(x), 3, -1) + m.recurrence.time_decay[None]
    r, k, v = (_heads(xs[j], proj.weight, 3) for j, proj in ((0, m.r_proj), (2, m.k_proj), (3, m.v_proj)))
    o, state = published.rwkv6(r, k, v, w, m.recurrence.bonus, state)
    o = o - jnp.mean(o, axis=-1, keepdims=True)
    o = _rms(o, m.norm.weight.reshape(o.shape[1:]), 1e-5) + m.norm.bias.reshape(o.shape[1:])[None]
    return (o.reshape(len(x), -1) * jax.nn.silu(xs[4] @ m.g_proj.weight.T)) @ m.o_proj.weight.T, state


@FLOAT32
def test_mixers_equal_their_equations(case):
    mixer = build(case)
    x = case.sample(np.random.default_rng(1), against.TIME)
    outputs, cache = eqx.filter_jit(mixer.prefill)(x, mixer.init_cache())
    wide = jax.tree.map(lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a, mixer)
    oracle = globals()[case.id.removesuffix("-mixer")]
    state = jnp.zeros(mixer.recurrence.state_shape, jnp.float64)
    with jax.numpy_rank_promotion("allow"):
        expected, final = jit(functools.partial(oracle, wide))(x.astype(jnp.float64), state)
    assert relative_error(outputs, expected) <= against.BOUND
    assert relative_error(getattr(cache, "state", cache), final) <= against.BOUND


def test_channel_mixing_equals_its_equations():
    (case,) = [case for case in MIXERS if case.id == "rwkv6-channel-mixer"]
    m = build(case)
    x = case.sample(np.random.default_rng(1), against.TIME)
    outputs, cache = eqx.filter_jit(m.prefill)(x, m.init_cache())
    wide = np.asarray(x, np.float64)
    delta = np.concatenate([np.zeros_like(wide[:1]), wide[:-1]]) - wide
    mu_k, mu_r, W_k, W_r, W_v = (
        np.asarray(a, np.float64) for a in (m.mu_k, m.mu_r, m.k_proj.weight, m.r_proj.weight, m.v_proj.weight)
    )
    hidden = np.maximum((wide + delta * mu_k) @ W_k.T, 0) ** 2
    expected = hidden @ W_v.T / (1 + np.exp(-(wide + delta * mu_r) @ W_r.T))
    assert relative_error(outputs, expected) <= against.BOUND
    np.testing.assert_array_equal(cache, x[-1])


# What is refused.


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (GLAMixer, {"num_heads": 0}, "GLAMixer: `num_heads` must be at least 1, got 0"),
        (GLAMixer, {"num_heads": 5}, r"GLAMixer: int\(`expand_k` .* multiple of `num_heads` = 5, .* \* 12\) = 6\."),
        (GLAMixer, {"num_heads": 3, "expand_v": 0.0}, r"GLAMixer: int\(`expand_v` \* `width`\) must .* = 0\."),
        (GLAMixer, {"num_heads": 3, "gate_low_rank_dim": 0}, "`gate_low_rank_dim` must be at least 1, got 0"),
        (GLAMixer, {"num_heads": 3, "gate_logit_normalizer": -1.0}, "`gate_logit_normalizer` must be above 0, got -1"),
        (RetNetMixer, {"num_heads": 5}, r"RetNetMixer: int\(`expand_k` \* `width`\) must .* `num_heads` = 5"),
        (RetNetMixer, {"num_heads": 4}, "RetNetMixer: .* must be even, as features turn in pairs, got 3"),
        (HGRN2Mixer, {"expand_ratio": 0}, "HGRN2Mixer: `expand_ratio` must be at least 1, got 0"),
        (HGRN2Mixer, {"expand_ratio": 5}, "HGRN2Mixer: `expand_ratio` must divide `width` = 12 .* got 5"),
        (HGRN2Mixer, {"num_heads": 5}, "HGRN2Mixer: `num_heads` must divide `width` = 12, got 5"),
        (HGRN2Mixer, {"num_heads": 3, "lower_bound": 1.0}, r"`lower_bound` must lie in \[0, 1\), got 1.0"),
        (RWKV6Mixer, {"num_heads": 4}, r"RWKV6Mixer: int\(`expand_k` .* multiple of `num_heads` = 4, got"),
        (RWKV6Mixer, {"num_heads": 3, "proj_low_rank_dim": 0}, "`proj_low_rank_dim` must be at least 1, got 0"),
        (RWKV6Mixer, {"num_heads": 3, "layer_idx": 1}, r"RWKV6Mixer: `layer_idx` must lie in \[0, 1\), got 1"),
        (RWKV6ChannelMixer, {"intermediate_size": 0}, "RWKV6ChannelMixer: `intermediate_size` must be .* 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(WIDTH, key=jax.random.key(0), **arguments)
