"""Attention against its equations, in float64; its room; and what its options ask for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_attention import attention, inputs
from helpers import equations, relative_error

import ssmkit
from ssmkit import AttentionInputs, Extent
from ssmkit.operators import _attend, _pieces


TIME = 11
# Sums of eleven products in float32: rounding is a few 6e-8.
BOUND, GRADIENT_BOUND = 1e-6, 3e-6
OPTIONS: dict[str, dict[str, Any]] = {
    "all before": {},
    "window of 3": {"sliding_window": 3},
    "window of 40, softcap": {"sliding_window": 40, "logit_softcapping": 1.5},
    "part rotated": {"rotary_dim": 4, "rope_theta": 100.0},
    "no positions": {"rope_theta": None, "scale": 0.7},
    "five heads, one key": {"num_heads": 5, "num_kv_heads": 1},
}


def rotated(operator: ssmkit.Attention, x: jax.Array, positions: np.ndarray) -> jax.Array:
    """Pairs of features as complex numbers, turned."""
    if operator.rope_theta is None:
        return x
    half = operator.rotary_dim // 2
    frequencies = operator.rope_theta ** (-np.arange(half) / half)
    turns = jnp.asarray(np.exp(1j * positions[:, None, None] * frequencies))
    pairs = jax.lax.complex(x[..., :half], x[..., half : 2 * half]) * turns
    return jnp.concatenate([pairs.real, pairs.imag, x[..., 2 * half :]], axis=-1)


def by_hand(operator: ssmkit.Attention, given: AttentionInputs, starts: frozenset[int], length: int):
    """Outputs of the tokens that count, and the keys and values of the last sequence, in float64."""
    firsts, seen = np.zeros(length, int), np.zeros((length, length), bool)
    for t in range(length):
        firsts[t] = t if t in starts or t == 0 else firsts[t - 1]
        window = t + 1 if operator.sliding_window is None else operator.sliding_window
        seen[t, max(firsts[t], t + 1 - window) : t + 1] = True
    positions = np.arange(length) - firsts
    query, key = (rotated(operator, x[:length], positions) for x in (given.query, given.key))
    value, last = given.value[:length], firsts[-1]
    groups = np.arange(operator.num_heads) * operator.num_kv_heads // operator.num_heads
    scores = operator.scale * jnp.einsum("thd,shd->hts", query, key[:, groups])
    if operator.logit_softcapping is not None:
        scores = operator.logit_softcapping * jnp.tanh(scores / operator.logit_softcapping)
    weights = jnp.where(seen[None], jnp.exp(scores), 0.0)
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.einsum("hts,shv->thv", weights, value[:, groups]), key[last:], value[last:]


def many(operator: ssmkit.Attention, given: AttentionInputs, starts: frozenset[int], length: int):
    """The same by the operator, which takes some of the tokens at once and then the rest."""
    marks = jnp.asarray([t in starts for t in range(TIME)])
    state = operator.reserve(operator.init_state(), 2 * TIME)
    first = jax.tree.map(lambda x: x[:4], given)
    rest = jax.tree.map(lambda x: x[4:], given)
    y, state = operator.chunk_scan(first, state, Extent(starts=marks[:4]))
    z, state = operator.chunk_scan(rest, state, Extent(length - 4, marks[4:]))
    count = int(state.length) if not isinstance(state.length, jax.core.Tracer) else None
    return jnp.concatenate([y, z])[:length], state, count


@pytest.fixture(params=["at once", "in pieces"], scope="module")
def form(request):
    """Scores of all tokens, and of pieces of three queries and three keys, of which the last have fewer."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in pieces":
            for module, name, value in ((_attend, "FEW", 0), (_pieces, "_SIZE", 3), (_pieces, "_LEAST", 2)):
                patch.setattr(module, name, value)
        jax.clear_caches()  # what was traced has another form
        yield
    jax.clear_caches()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("starts", [(), (5,), (2, 6, 7)], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equations(options, starts):
    operator, length, starts = attention(**options), 9, frozenset(starts)
    given = inputs(np.random.default_rng(0), TIME, operator.num_heads, operator.num_kv_heads)
    exact = jax.tree.map(lambda x: x.astype(jnp.float64), given)
    expected, keys, values = by_hand(operator, exact, starts, length)
    outputs, state, count = many(operator, given, starts, length)
    assert count == len(keys)
    assert relative_error(outputs, expected) <= BOUND
    room = state.keys.shape[1]
    places = np.arange(count)[-room:] % room
    for got, want in ((state.keys, keys), (state.values, values)):
        assert relative_error(np.swapaxes(got[:, places], 0, 1), want[-room:]) <= BOUND
        assert not np.any(np.delete(np.asarray(got), places, axis=1))

    weights = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape))
    loss = lambda run, given: jnp.sum(weights.astype(given.query.dtype) * run(operator, given, starts, length)[0])
    got, want = (jax.grad(functools.partial(loss, run))(x) for run, x in ((many, given), (by_hand, exact)))
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) <= GRADIENT_BOUND


# Room.


def stepped(operator, given, state, count):
    for t in range(count):
        y, state = operator.step(jax.tree.map(lambda x: x[t], given), state)  # noqa: B023
    return y, state


def test_room_that_is_known_to_lack_is_an_error():
    operator, given = attention(), inputs(np.random.default_rng(0), TIME)
    with pytest.raises(
        ValueError, match=r"room for 0 tokens, got 1 at once: make room with `reserve\(cache, 1\)` first"
    ):
        stepped(operator, given, operator.init_state(), 1)
    with pytest.raises(ValueError, match=r"room for 0 tokens, got 11 at once: make room with `reserve\(cache, 11\)`"):
        operator.chunk_scan(given, operator.init_state())
    for tokens in (-1, 1.5, "3", None):
        with pytest.raises((TypeError, ValueError), match="tokens"):
            operator.reserve(operator.init_state(), tokens)


@pytest.mark.parametrize("way", ["step", "prefill"])
def test_past_the_room_there_are_no_wrong_numbers(way):
    """The last token that has room is right; those after it are NaN, and so is all that follows them."""
    operator, given = attention(), inputs(np.random.default_rng(0), 20)
    state = operator.reserve(operator.init_state(), 16)
    assert state.keys.shape[1] == 16
    expected, _ = operator.chunk_scan(given, operator.reserve(operator.init_state(), 20))
    if way == "step":
        y, state = stepped(operator, given, state, 16)
        assert relative_error(y, expected[15]) <= BOUND
        y, state = operator.step(jax.tree.map(lambda x: x[16], given), state)
        assert np.isnan(y).all()
    else:
        _, state = operator.chunk_scan(jax.tree.map(lambda x: x[:10], given), state)
        y, state = operator.chunk_scan(jax.tree.map(lambda x: x[10:], given), state)
        assert relative_error(y[:6], expected[10:16]) <= BOUND and np.isnan(y[6:]).all()
    # More room brings nothing back.
    with pytest.raises(ValueError, match="the cache has lost tokens: more came than its room, 16. Start again"):
        operator.reserve(state, 1)
    grown = jax.jit(lambda state: operator.reserve(state, 64))(state)
    y, _ = operator.step(jax.tree.map(lambda x: x[0], given), grown)
    assert np.isnan(y).all()
    # Tokens that do not count need no room, and a new sequence has the whole of it.
    y, _ = operator.step(jax.tree.map(lambda x: x[0], given), state, valid=False)
    assert np.isfinite(y).all()
    y, _ = operator.chunk_scan(jax.tree.map(lambda x: x[:9], given), state, Extent(starts=jnp.arange(9) == 0))
    assert relative_error(y, expected[:9]) <= BOUND


def test_room_grows_in_steps():
    operator = attention()
    state, sizes = operator.init_state(), []
    assert [operator.reserve(state, n).keys.shape[1] for n in (1024, 1025, 1281, 8192, 8193)] == [
        1024,
        1280,
        1536,
        8192,
        10240,
    ]
    for tokens in (0, 1, 16, 17, 100):
        state = operator.reserve(state, tokens)
        sizes.append(state.keys.shape[1])
    assert sizes == [0, 16, 16, 32, 128]
    state = state._replace(length=jnp.asarray(100, jnp.int32))
    assert [operator.reserve(state, tokens).keys.shape[1] for tokens in (28, 29)] == [128, 256]
    with pytest.raises(ValueError, match="the cache is damaged: it says that it holds -1 tokens"):
        operator.reserve(state._replace(length=jnp.asarray(-1, jnp.int32)), 1)
    rows = ssmkit.rows.fork(operator.reserve(operator.init_state(), 20), 3)._replace(
        length=jnp.asarray([1, 20, 3], jnp.int32)
    )
    assert operator.reserve(rows, 13).keys.shape == (3, 2, 64, 6)
    traced = jax.eval_shape(lambda state: operator.reserve(state, 5), state)
    assert traced.keys.shape[1] == 128 + 5
    window = attention(sliding_window=7)
    assert window.reserve(window.init_state(), 1000) is not None
    assert window.reserve(window.init_state(), 1000).keys.shape[1] == 7


def test_a_window_takes_no_square_of_memory():
    operator, time = attention(sliding_window=8), 512
    given = jax.eval_shape(lambda: inputs(np.random.default_rng(0), time))
    program = jax.make_jaxpr(lambda given: operator.chunk_scan(given, operator.init_state())[0])(given)
    sizes = [variable.aval.size for equation, _ in equations(program.jaxpr) for variable in equation.outvars]
    assert 0 < max(sizes) < time * time


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kv_heads": 3}, "`num_kv_heads` must divide `num_heads` = 4: .* got 3"),
        ({"sliding_window": 0}, "`sliding_window` must be at least 1, got 0"),
        ({"rotary_dim": 5}, r"`rotary_dim` must be even and in \[2, `head_dim` = 6\].* got 5"),
        ({"rotary_dim": 8}, r"`rotary_dim` must be even and in \[2, `head_dim` = 6\].* got 8"),
        ({"rope_theta": -1.0}, "`rope_theta` must be a number above 0, .*got -1.0"),
        ({"scale": 0.0}, "`scale` must be a number above 0, .*got 0.0"),
        ({"logit_softcapping": "x"}, "`logit_softcapping` must be a number above 0, .*got 'x'"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        attention(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "AttentionMixer: `num_heads` must divide `width` = 8 where `head_dim` is left out, got 3"),
        ({"num_heads": 2, "partial_rotary_factor": 1.5}, r"`partial_rotary_factor` must be in \(0, 1\], got 1.5"),
        ({"num_heads": 2, "partial_rotary_factor": 0.25}, "`rotary_dim` must be even"),
    ],
)
def test_mixers_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        ssmkit.AttentionMixer(8, **options, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, s: (x.query, s), "`inputs` must be `AttentionInputs`"),
        (lambda x, s: (x._replace(key=x.key[:3]), s), "axis 0 .time. of `value` must be 3, as in `key`, got 11"),
        (lambda x, s: (x._replace(value=x.value[..., :2]), s), "axis 2 of `value` must be 6, got 2"),
        (lambda x, s: (x, s.keys), "`state` must be an `AttentionState`"),
        (lambda x, s: (x, s._replace(keys=s.keys[:1])), r"`state.keys` must have shape \(2, 16, 6\), got"),
        (lambda x, s: (x, s._replace(length=jnp.zeros(2, jnp.int32))), r"`state.length` must have shape \(\), got"),
    ],
)
def test_inputs_that_do_not_fit(change, message):
    operator, given = attention(), inputs(np.random.default_rng(0), TIME)
    with pytest.raises(ValueError, match=message):
        operator.chunk_scan(*change(given, operator.reserve(operator.init_state(), TIME)))
