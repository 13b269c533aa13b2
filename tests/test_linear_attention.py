"""RetNet, GLA, HGRN2 and RWKV-6 against their papers' equations in float64, around their recurrences."""

import functools

import against
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import published_attention
import pytest
from cases_linear_attention import MIXERS, WIDTH
from helpers import build, jit, over, relative_error

import ssmkit
from ssmkit.models.gla import GLAInputs, GLAMixer, GLARecurrence
from ssmkit.models.hgrn2 import HGRN2Inputs, HGRN2Mixer, HGRN2Recurrence
from ssmkit.models.hgrn2_model import HGRN2
from ssmkit.models.retnet import RetNetMixer
from ssmkit.models.rwkv6 import RWKV6Inputs, RWKV6Mixer, RWKV6Recurrence
from ssmkit.models.rwkv6_channel import RWKV6ChannelMixer


pytestmark = pytest.mark.once


FLOAT32 = over(
    MIXERS,
    "retnet-mixer",
    "retnet-mixer-options",
    "gla-mixer",
    "gla-mixer-options",
    "hgrn2-mixer",
    "hgrn2-mixer-conv",
    "rwkv6-mixer",
)


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
        (HGRN2Recurrence((1, 1, 1), 0.0), lambda f: HGRN2Inputs(f, f, _all(1))),
        (HGRN2Recurrence((1, 1, 1), -0.1), lambda f: HGRN2Inputs(f, f, _all(1))),
        (
            RWKV6Recurrence(*jnp.ones((2, 1, 1), jnp.float32), (1, 1, 1)),
            lambda w: RWKV6Inputs(_all(1), _all(1), _all(1), w),
        ),
    ],
    ids=["gla", "hgrn2", "hgrn2-bound", "hgrn2-tiny-bound", "hgrn2-zero", "hgrn2-below-zero", "rwkv6"],
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
    gate = 1.0 if m.g_proj is None else jax.nn.silu(x @ m.g_proj.weight.T)
    return (normed * gate) @ m.o_proj.weight.T


def _projected(m, x, projections, activation=lambda x: x):
    """Each passes its own convolution, if there is one: their taps follow one another in `conv`."""
    features, first = [], 0
    for projection in projections:
        array = x @ projection.weight.T
        if m.conv is not None:
            taps = m.conv.weight[first : first + array.shape[1]]
            padded = jnp.concatenate([jnp.zeros_like(array[: taps.shape[1] - 1]), array])
            array = sum(taps[:, j] * padded[j : j + len(x)] for j in range(taps.shape[1]))
            if m.conv.bias is not None:
                array = array + m.conv.bias[first : first + array.shape[1]]
            first, array = first + array.shape[1], activation(array)
        features.append(array)
    return features


def retnet(m, x, state):
    heads, key, value = m.recurrence.state_shape
    q, k, v = _projected(m, x, (m.q_proj, m.k_proj, m.v_proj), jax.nn.silu)
    q, k, v = (a.reshape(len(x), -1, size) for a, size in ((q, key), (k, key), (v, value)))
    k, v = (a.repeat(heads // a.shape[1], axis=1) for a in (k, v))
    positions = jnp.arange(len(x))
    o, state = published_attention.retention(
        published_attention.rotate(q, positions), published_attention.rotate(k, positions), v, state
    )
    return _gated(m, x, o), state


def gla(m, x, state):
    """Every head with a state of its own, as published: those that share keys and values have equal ones."""
    _, key, value = m.recurrence.state_shape
    q, k, v = _projected(m, x, (m.q_proj, m.k_proj, m.v_proj), jax.nn.silu)
    gate = x @ m.gk_down.weight.T @ m.gk_up.weight.T
    gate = gate + jnp.broadcast_to(m.gk_up.bias, gate.shape)
    q, k, v, gate = (a.reshape(len(x), -1, size) for a, size in ((q, key), (k, key), (v, value), (gate, key)))
    k, v, gate = (a.repeat(m.num_heads // a.shape[1], axis=1) for a in (k, v, gate))
    if m.recurrence.clamp_min is not None:  # on the logarithm of the decay: as a gate that is not below this
        least = m.recurrence.clamp_min * 16
        gate = jnp.maximum(gate, least - jnp.log(-jnp.expm1(least)))
    o, states = published_attention.gla(q, k, v, gate, state.repeat(m.num_heads // len(state), axis=0))
    return _gated(m, x, o), states[:: m.num_heads // len(state)]


def hgrn2(m, x, state):
    q, f, i = (a.reshape(len(x), 3, -1) for a in _projected(m, x, (m.q_proj, m.f_proj, m.i_proj)))
    o, state = published_attention.hgrn2(q, f, i, jnp.clip(m.recurrence.lower_bound, 0, 1), state)
    return _rms(o.reshape(x.shape), m.norm.weight, 1e-5) @ m.o_proj.weight.T, state


def rwkv6(m, x, state):
    past = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    mix = lambda mu: x + (past - x) * mu
    low = jnp.tanh(mix(jnp.broadcast_to(m.lerp.mu_x, x.shape)) @ m.lerp.down.weight.T)
    rank = m.lerp.up.weight.shape[2]
    xs = [mix(m.lerp.mu[j][None] + low[:, j * rank : (j + 1) * rank] @ m.lerp.up.weight[j].T) for j in range(5)]
    w = jnp.tanh(xs[1] @ m.decay_down.weight.T) @ m.decay_up.weight.T
    w = w.reshape(len(x), 3, -1) + m.recurrence.time_decay[None]
    r, k, v = (_heads(xs[j], proj.weight, 3) for j, proj in ((0, m.r_proj), (2, m.k_proj), (3, m.v_proj)))
    o, state = published_attention.rwkv6(r, k, v, w, m.recurrence.bonus, state)
    o = o - jnp.mean(o, axis=-1, keepdims=True)
    o = _rms(o, m.norm.weight.reshape(o.shape[1:]), 1e-5) + m.norm.bias.reshape(o.shape[1:])[None]
    return (o.reshape(len(x), -1) * jax.nn.silu(xs[4] @ m.g_proj.weight.T)) @ m.o_proj.weight.T, state


@FLOAT32
def test_mixers_equal_their_equations(case):
    mixer = build(case)
    x = case.sample(np.random.default_rng(1), against.TIME)
    outputs, cache = jit(lambda x: mixer.prefill(x, mixer.init_cache()))(x)
    wide = jax.tree.map(lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a, mixer)
    oracle = globals()[case.id.partition("-")[0]]
    state = jnp.zeros(mixer.recurrence.state_shape, jnp.float64)
    with jax.numpy_rank_promotion("allow"):
        expected, final = jit(functools.partial(oracle, wide))(x.astype(jnp.float64), state)
    assert relative_error(outputs, expected) <= against.BOUND
    assert relative_error(getattr(cache, "state", cache), final) <= against.BOUND


def test_a_head_size_is_another_name_for_the_heads():
    """Heads may have any size: `rwkv6-mixer` above has keys of 2 and values of 4."""
    make = lambda **options: eqx.filter_eval_shape(
        lambda key: RWKV6Mixer(WIDTH, expand_k=1.0, **options, key=key), jax.random.key(0)
    )
    for size in (1, 2, 3, 6, 12):
        mixer = make(head_dim=size)
        assert mixer.recurrence.state_shape == (WIDTH // size, size, size)
        assert jax.tree.structure(mixer) == jax.tree.structure(make(num_heads=WIDTH // size))


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


# HGRN2's lower bounds.


def test_lower_bounds_are_learnt_together():
    """Those of flash-linear-attention's model: the cumulative softmax over layers, less that of the first."""
    model = HGRN2(11, 8, 3, state_size=4, intermediate_size=5, key=jax.random.key(0))
    start = np.stack([block.mixer.recurrence.lower_bound for block in model.blocks[::2]])
    np.testing.assert_allclose(start, np.broadcast_to(np.arange(3)[:, None, None] / 3, (3, 2, 4)), atol=1e-7)
    logits = np.random.default_rng(0).normal(size=(3, 8))
    model = eqx.tree_at(lambda m: m.lower_bounds, model, jnp.asarray(logits, jnp.float32))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=0)
    expected = np.cumsum(softmax, axis=0) - softmax[0]
    got = np.stack([block.mixer.recurrence.lower_bound for block in model.blocks[::2]])
    np.testing.assert_allclose(got.reshape(3, 8), expected, atol=1e-6)
    weight = np.random.default_rng(1).normal(size=(3, 8))
    of_layers = lambda model: jnp.stack([block.mixer.recurrence.lower_bound.ravel() for block in model.blocks[::2]])
    gradient = eqx.filter_grad(lambda model: jnp.sum(jnp.asarray(weight, jnp.float32) * of_layers(model)))(model)
    later = np.cumsum(weight[:0:-1], axis=0)[::-1]  # a share counts in its own layer and in all after it
    slope = np.concatenate([np.zeros((1, 8)), later])
    expected = softmax * (slope - np.sum(softmax * slope, axis=0))
    np.testing.assert_allclose(gradient.lower_bounds, expected, atol=1e-6)


def test_without_lower_bounds():
    """`use_lower_bound=False` has no such parameter, and is what bounds of zero are."""
    model = HGRN2(11, 8, 2, state_size=4, intermediate_size=5, use_lower_bound=False, key=jax.random.key(0))
    assert model.lower_bounds is None and model.layers[0].mixer.recurrence.lower_bound is None
    zero = eqx.tree_at(
        lambda m: [m.layers[i].mixer.recurrence.lower_bound for i in (0, 2)],
        model,
        2 * [jnp.zeros((2, 4), jnp.float32)],
        is_leaf=lambda leaf: leaf is None,
    )
    logits = [jit(lambda tokens, m=m: m(tokens))(jnp.arange(9)) for m in (model, zero)]
    assert relative_error(*logits) <= 2e-6


def test_layers_with_different_bounds_are_one_trace():
    """In a model of one's own, and in that of the paper."""

    def mine(layers: int) -> ssmkit.LanguageModel:
        bound = lambda i: i / layers
        mixers = [HGRN2Mixer(8, state_size=4, lower_bound=bound(i), key=jax.random.key(i)) for i in range(layers)]
        return ssmkit.LanguageModel(11, 8, mixers, key=jax.random.key(0))

    def theirs(layers: int) -> HGRN2:
        return HGRN2(11, 8, layers, state_size=4, intermediate_size=5, key=jax.random.key(0))

    for make in (mine, theirs):
        lines = []
        for layers in (2, 12):
            arrays, static = eqx.partition(make(layers), eqx.is_array)
            lowered = jax.jit(lambda arrays, tokens, s=static: eqx.combine(arrays, s)(tokens)).lower(
                arrays, jnp.arange(9)
            )
            lines.append(lowered.as_text().count("\n"))
        assert lines[1] < lines[0] + 10 * 25, lines  # a layer is a call, and a row of the bounds


# What is refused.


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (GLAMixer, {"num_heads": 0}, "GLAMixer: `num_heads` must be at least 1, got 0"),
        (GLAMixer, {"num_heads": 5}, r"GLAMixer: int\(`expand_k` .* multiple of `num_heads` = 5, .* \* 12\) = 6\."),
        (GLAMixer, {"num_heads": 3, "expand_v": 0.0}, r"GLAMixer: int\(`expand_v` \* `width`\) must .* = 0\."),
        (GLAMixer, {"num_heads": 3, "num_kv_heads": 2}, "GLAMixer: `num_kv_heads` must divide `num_heads` = 3, got 2"),
        (RetNetMixer, {"num_heads": 2, "num_kv_heads": 0}, "RetNetMixer: `num_kv_heads` must be at least 1, got 0"),
        (
            GLAMixer,
            {"num_heads": 3, "use_short_conv": True, "conv_kernel": 0},
            "GLAMixer: `conv_kernel` must be at least 1, got 0",
        ),
        (
            HGRN2Mixer,
            {"num_heads": 3, "lower_bound": np.zeros(7)},
            r"`lower_bound` must be .* \(384,\) .* shape \(7,\)",
        ),
        (GLAMixer, {"num_heads": 3, "gate_low_rank_dim": 0}, "`gate_low_rank_dim` must be at least 1, got 0"),
        (GLAMixer, {"num_heads": 3, "gate_logit_normalizer": -1.0}, "`gate_logit_normalizer` must be above 0, got -1"),
        (RetNetMixer, {"num_heads": 5}, r"RetNetMixer: int\(`expand_k` \* `width`\) must .* `num_heads` = 5"),
        (RetNetMixer, {"num_heads": 4}, "RetNetMixer: .* must be even, as features turn in pairs, got 3"),
        (HGRN2Mixer, {"state_size": 0}, "HGRN2Mixer: `state_size` must be at least 1, got 0"),
        (HGRN2Mixer, {"state_size": 5}, "HGRN2Mixer: `state_size` must divide `width` = 12 .* got 5"),
        (HGRN2Mixer, {"num_heads": 5}, "HGRN2Mixer: `num_heads` must divide `width` = 12, got 5"),
        (HGRN2Mixer, {"num_heads": 3, "lower_bound": 1.0}, r"`lower_bound` must lie in \[0, 1\), got 1.0"),
        (RWKV6Mixer, {"num_heads": 4}, r"RWKV6Mixer: int\(`expand_k` .* multiple of `num_heads` = 4, got"),
        (RWKV6Mixer, {"head_dim": 4}, "RWKV6Mixer: `head_dim` must divide the 6 key channels, .* got 4"),
        (RWKV6Mixer, {"head_dim": 0}, "RWKV6Mixer: `head_dim` must be at least 1, got 0"),
        (RWKV6Mixer, {"head_dim": 3, "num_heads": 2}, "give `num_heads` or `head_dim`, not both, got 2 and 3"),
        (RWKV6Mixer, {"num_heads": 3, "proj_low_rank_dim": 0}, "`proj_low_rank_dim` must be at least 1, got 0"),
        (RWKV6Mixer, {"num_heads": 3, "layer_idx": 1}, r"RWKV6Mixer: `layer_idx` must lie in \[0, 1\), got 1"),
        (RWKV6ChannelMixer, {"intermediate_size": 0}, "RWKV6ChannelMixer: `intermediate_size` must be .* 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(WIDTH, key=jax.random.key(0), **arguments)
