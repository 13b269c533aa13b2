"""Samplers against an independent implementation by sorting, and against the distribution they promise."""

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmkit


VOCAB = 12
FILTERS = {"top_k": 3, "top_p": 0.7, "min_p": 0.2, "repetition_penalty": 1.5}

# Values that tie, values that do not, and ends of the range; XLA may take for 0 what is next to underflow.
values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -np.inf]),
    st.floats(-20, 20, width=32),
    st.floats(-(2.0**90), 2.0**90, width=32),
).filter(lambda value: value == 0 or abs(value) > 1e-20)
rows = st.lists(values, min_size=VOCAB, max_size=VOCAB).filter(lambda row: max(row) > -np.inf)
histories = st.lists(st.booleans(), min_size=VOCAB, max_size=VOCAB)
settings = hypothesis.settings(max_examples=4 * hypothesis.settings().max_examples)  # examples are cheap here


@eqx.filter_jit
def _filtered(sampler, logits, history):
    return sampler.filtered(logits, history)


def filtered(sampler, logits, history=None):
    history = np.zeros(VOCAB, bool) if history is None else np.asarray(history)
    return np.asarray(_filtered(sampler, jnp.asarray(logits, jnp.float32), jnp.asarray(history)))


def probabilities(logits):
    weights = np.exp(logits.astype(np.float64) - np.max(logits))
    return weights / np.sum(weights)


def by_sorting(logits, history, temperature=1.0, top_k=None, top_p=None, min_p=None, repetition_penalty=None):
    """HF transformers' order and meaning; ties at a threshold are kept.

    Returns logits and whether rounding could decide otherwise: a mass or a ratio next to its threshold.
    """
    logits, near = np.array(logits, np.float32), False
    if repetition_penalty is not None:
        for token in np.flatnonzero(history):
            scale = np.float32(repetition_penalty)
            logits[token] = logits[token] * scale if logits[token] < 0 else logits[token] / scale
    logits = logits / np.float32(temperature)
    if top_k is not None:
        least = np.sort(logits)[::-1][min(top_k, VOCAB) - 1]
        logits[logits < least] = -np.inf
    if top_p is not None:
        order = np.argsort(-logits, kind="stable")
        before = np.concatenate([[0.0], np.cumsum(probabilities(logits)[order])[:-1]])
        last = np.flatnonzero(before < top_p)[-1]
        # Between equal logits no rounding decides: they stay together.
        distinct = np.concatenate([[True], logits[order][1:] != logits[order][:-1]])
        near |= bool(np.any(np.abs(before[distinct] - top_p) < 1e-5))
        logits[logits < logits[order][last]] = -np.inf
    if min_p is not None:
        ratio = probabilities(logits) / np.max(probabilities(logits))
        near |= bool(np.any((np.abs(ratio - min_p) < 1e-5) & (ratio < 1)))
        logits[ratio < min_p] = -np.inf
    return logits, near


def check(logits, history, **arguments):
    expected, near = by_sorting(logits, history, **arguments)
    hypothesis.assume(not near)
    np.testing.assert_allclose(filtered(ssmkit.Sampler(**arguments), logits, history), expected, rtol=1e-6)


@settings
@hypothesis.given(rows, st.integers(1, VOCAB + 3))
def test_top_k(logits, k):
    check(logits, None, top_k=k)


@settings
@hypothesis.given(rows, st.floats(0.01, 1.0))
@hypothesis.example([0.0, -0.0] * 6, 0.3)
def test_top_p(logits, p):
    check(logits, None, top_p=p)


@settings
@hypothesis.given(rows, st.floats(0.0, 1.0))
def test_min_p(logits, p):
    check(logits, None, min_p=p)


@settings
@hypothesis.given(rows, histories, st.floats(0.25, 8), st.floats(0.1, 10))
def test_repetition_penalty_and_temperature(logits, history, penalty, temperature):
    check(logits, history, repetition_penalty=penalty, temperature=temperature)


@settings
@hypothesis.given(
    rows, histories, st.floats(0.1, 10), st.integers(1, VOCAB), st.floats(0.01, 1), st.floats(0, 1), st.floats(0.25, 8)
)
def test_all_filters_in_order(logits, history, temperature, k, p, ratio, penalty):
    check(logits, history, temperature=temperature, top_k=k, top_p=p, min_p=ratio, repetition_penalty=penalty)


def test_the_order_of_filters_matters():
    """Cases in which another order keeps other tokens."""
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1] + [1e-9] * 8, np.float32))
    kept = lambda **arguments: int(np.isfinite(filtered(ssmkit.Sampler(**arguments), logits)).sum())
    assert kept(top_p=0.6) == 2
    assert kept(top_p=0.6, temperature=0.25) == 1  # temperature before top-p
    assert kept(top_p=0.6, temperature=4.0) == 3
    assert kept(top_k=2, top_p=0.55) == 1  # top-k before top-p: of what is left, 0.57 is the first
    assert kept(top_k=4, top_p=1.0, min_p=0.45) == 3


def test_nothing_is_filtered_unless_asked():
    logits = np.linspace(-3, 2, VOCAB).astype(np.float32)
    np.testing.assert_array_equal(filtered(ssmkit.Sampler(), logits), logits)
    neutral = ssmkit.Sampler(top_k=VOCAB, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    np.testing.assert_array_equal(filtered(neutral, logits, np.ones(VOCAB, bool)), logits)


def test_the_best_token_is_always_kept():
    for logits in (np.zeros(VOCAB), np.linspace(-90, 90, VOCAB), np.array([5.0] + [-np.inf] * (VOCAB - 1))):
        strictest = ssmkit.Sampler(top_k=1, top_p=1e-6, min_p=1.0)
        kept = np.isfinite(filtered(strictest, logits))
        np.testing.assert_array_equal(kept, logits == np.max(logits))


@pytest.mark.parametrize("names", [(), ("top_k",), ("top_p",), ("min_p",), tuple(FILTERS)])
def test_tokens_come_as_often_as_promised(names):
    """Pearson's statistic of 20000 draws stays below a value that 1 of 100000 seeds exceeds."""
    count = 20000
    logits = jnp.asarray(np.random.default_rng(3).normal(size=VOCAB), jnp.float32)
    history = jnp.arange(VOCAB) % 3 == 0
    sampler = ssmkit.Sampler(temperature=0.7, **{name: FILTERS[name] for name in names})
    draw = jax.jit(jax.vmap(lambda key: sampler(logits, key=key, history=history)))
    tokens = draw(jax.random.split(jax.random.key(5), count))
    assert tokens.dtype == jnp.int32
    expected = count * probabilities(np.asarray(sampler.filtered(logits, history)))
    seen = np.bincount(np.asarray(tokens), minlength=VOCAB)
    assert (seen[expected == 0] == 0).all()
    statistic = np.sum((seen - expected)[expected > 0] ** 2 / expected[expected > 0])
    assert statistic < 45  # 11 degrees of freedom at most


def test_greedy_takes_the_lowest_of_equals():
    key = jax.random.key(0)
    for logits, token in (([0.0, 2, 1, 2], 1), ([3.0, 3, 3], 0), ([-np.inf, -5, -5], 1), ([-0.0, 0.0], 0)):
        chosen = ssmkit.Greedy()(jnp.asarray(logits, jnp.float32), key=key, history=None)
        assert int(chosen) == token and chosen.dtype == jnp.int32
    assert not ssmkit.Greedy().needs_key and not ssmkit.Greedy().needs_history


def test_history_is_asked_for_by_a_repetition_penalty_only():
    assert ssmkit.Sampler(repetition_penalty=1.1).needs_history
    assert not ssmkit.Sampler(temperature=0.5, top_k=5, top_p=0.5, min_p=0.1).needs_history
    assert ssmkit.Sampler().needs_key


@pytest.mark.parametrize("number", [np.float32, np.float64, jnp.float32, jnp.bfloat16], ids=lambda kind: kind.__name__)
def test_numbers_of_every_library(number):
    sampler = ssmkit.Sampler(number(0.5), np.int64(5), number(0.5), number(0.25), number(1.5))
    plain = ssmkit.Sampler(0.5, 5, 0.5, 0.25, 1.5)
    for got, expected in zip(jax.tree.leaves(sampler), jax.tree.leaves(plain), strict=True):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape) and got == expected
    assert ssmkit.Sampler(top_k=jnp.asarray(5)).top_k == ssmkit.Sampler(top_k=np.uint8(5)).top_k == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, r"`temperature` must be at least 1e-6 \(use `Greedy\(\)` for 0\), got 0.0"),
        ({"temperature": -1.0}, "`temperature` must be at least 1e-6"),
        ({"temperature": float("nan")}, "`temperature` must be at least 1e-6"),
        ({"top_k": 0}, "`top_k` must be an integer, at least 1, got 0"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"`top_p` must be in \(0, 1\], got 1.5"),
        ({"min_p": -0.1}, r"`min_p` must be in \[0, 1\], got -0.1"),
        ({"min_p": 1.1}, r"`min_p` must be in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be above 0, got 0.0"),
        ({"temperature": 0.0, "top_p": 2.0}, "`temperature` must .*; `top_p` must "),
        ({"temperature": "1"}, "`temperature` must be one finite number, at least 1e-6 .*, got '1'"),
        ({"temperature": None}, "`temperature` must be one finite number, at least 1e-6 .*, got None"),
        ({"temperature": True}, "`temperature` must be one finite number, .*, got True"),
        ({"temperature": 1j}, "`temperature` must be one finite number, .*, got 1j"),
        ({"temperature": float("inf")}, "`temperature` must be one finite number, .*, got inf"),
        ({"temperature": 1e39}, r"`temperature` must be one finite number, .*, got 1e\+39"),
        ({"temperature": jnp.array([0.5, 1.0])}, r"`temperature` must be one finite number, .*, got Array\(\[0.5, 1"),
        ({"temperature": [0.5, 1.0]}, r"`temperature` must be one finite number, .*, got \[0.5, 1.0\]"),
        ({"top_k": 2.0}, "`top_k` must be an integer, at least 1, got 2.0"),
        ({"top_k": True}, "`top_k` must be an integer, at least 1, got True"),
        ({"top_k": "5"}, "`top_k` must be an integer, at least 1, got '5'"),
        ({"top_k": np.array([5, 6])}, r"`top_k` must be an integer, at least 1, got array\(\[5, 6\]\)"),
        ({"top_p": "0.5"}, r"`top_p` must be one finite number, in \(0, 1\], got '0.5'"),
        ({"top_p": float("nan")}, r"`top_p` must be in \(0, 1\], got nan"),
        ({"top_p": 1e-60}, r"`top_p` must be in \(0, 1\], got 1e-60"),
        ({"min_p": float("nan")}, r"`min_p` must be in \[0, 1\], got nan"),
        ({"min_p": []}, r"`min_p` must be one finite number, in \[0, 1\], got \[\]"),
        ({"repetition_penalty": float("nan")}, "`repetition_penalty` must be above 0, got nan"),
        ({"repetition_penalty": float("inf")}, "`repetition_penalty` must be one finite number, above 0, got inf"),
        ({"repetition_penalty": 1e-60}, "`repetition_penalty` must be above 0, got 1e-60"),
    ],
)
def test_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match="Sampler: .*" + message):
        ssmkit.Sampler(**arguments)
