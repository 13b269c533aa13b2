"""Rows: the batch axis, slots of a server, and rows of different requests in one executable."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import trees_equal_bitwise

import ssmkit
from ssmkit import rows
from ssmkit.generation import _engine, _requests, _sampling
from ssmkit.models import Mamba2, Mamba2Config


VOCAB, SLOTS, TURN = 29, 4, 3
KEY = jax.random.key(3)


@functools.cache
def model() -> Mamba2:
    config = Mamba2Config(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=8, head_dim=8, n_groups=1)
    return Mamba2(config, key=jax.random.key(0))


# Prompt, limit, stop tokens, sampler.
REQUESTS = [
    ([3, 1, 4, 1, 5], 11, [], ssmkit.Greedy()),
    ([9], 3, [], ssmkit.Sampler(temperature=1.5)),
    ([2, 6, 5], 14, [1, 2, 3, 4, 5], ssmkit.Sampler(temperature=2.0, top_k=12)),
    ([7, 7], 1, [], ssmkit.Sampler(top_p=0.7)),
    ([8, 2, 8], 9, [], ssmkit.Sampler(min_p=0.2)),
    ([1], 12, [], ssmkit.Sampler(temperature=0.9, repetition_penalty=3.0)),
    ([28, 0, 28, 5], 7, [], ssmkit.Sampler(temperature=0.9, top_k=9, top_p=0.9, min_p=0.1, repetition_penalty=1.2)),
    ([5], 13, [9, 8, 7, 6], ssmkit.Sampler(temperature=3.0)),
    ([6, 4], 10, [0, 2, 4, 6, 8, 10, 12], ssmkit.Greedy()),
]


@functools.cache
def alone(i: int) -> ssmkit.Generation:
    """The request by itself, with its own sampler."""
    prompt, limit, stops, sampler = REQUESTS[i]
    return ssmkit.generate(model(), [prompt], limit, sampler, stop_token=stops, key=keys()[i : i + 1])


def keys():
    return jax.random.split(KEY, len(REQUESTS))


def tokens_of(generation: ssmkit.Generation, i: int = 0) -> list[int]:
    return generation.tokens[i, : int(generation.lengths[i])].tolist()


@contextlib.contextmanager
def engine_compilations():
    events = []

    def listen(event: str, duration_secs: float, *, fun_name: str = "", **_):
        if event == "/jax/core/compile/backend_compile_duration" and fun_name in ("jit(begin)", "jit(proceed)"):
            events.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_requests_that_differ_share_an_executable():
    """Limits, samplers and stop tokens by row: each row is what it is alone, whoever is beside it."""
    expected = [tokens_of(alone(i)) for i in range(len(REQUESTS))]
    assert len({len(tokens) for tokens in expected}) > 4  # some stop, and most at a limit of their own
    batches = [[0, 1, 2, 3], [4, 5, 6, 0], [7, 8, 1, 6]]
    with engine_compilations() as events:
        for batch in batches:
            prompts, limits, stops, samplers = zip(*(REQUESTS[i] for i in batch), strict=True)
            out = ssmkit.generate(
                model(), prompts, list(limits), list(samplers), stop_token=list(stops), key=keys()[np.array(batch)]
            )
            assert [tokens_of(out, row) for row in range(SLOTS)] == [expected[i] for i in batch]
            assert out.finished.tolist() == [bool(alone(i).finished[0]) for i in batch]
            assert out.tokens.shape[1] == max(limits)
            consumed = [len(REQUESTS[i][0]) + len(expected[i]) for i in batch]
            assert out.rows.consumed.tolist() == consumed
            assert out.rows.last.tolist() == [expected[i][-1] for i in batch]
    assert events == ["jit(begin)"]


def test_nine_requests_over_four_slots():
    """As a server runs them: slots are rows, a free one takes the next request, all in one executable."""
    empty = ssmkit.generate(model(), [[0]] * SLOTS, 0, [_sampling.mixed(ssmkit.Greedy())] * SLOTS, key=KEY).rows
    slots = rows.where(jnp.zeros(SLOTS, bool), empty, empty)
    slots = ssmkit.Rows(**{**vars(slots), "finished": jnp.ones(SLOTS, bool)})
    waiting, owner, got = list(range(len(REQUESTS))), [-1] * SLOTS, {i: [] for i in range(len(REQUESTS))}
    with engine_compilations() as events:
        while waiting or max(owner) >= 0:
            for slot in range(SLOTS):
                if owner[slot] < 0 and waiting:
                    owner[slot] = i = waiting.pop(0)
                    prompt, _, _, sampler = REQUESTS[i]
                    start = ssmkit.generate(model(), [prompt], 0, _sampling.mixed(sampler), key=keys()[i : i + 1])
                    slots = rows.put(slots, slot, rows.take(start.rows, 0))
            asked = [REQUESTS[i] for i in owner]
            left = [0 if i < 0 else min(TURN, REQUESTS[i][1] - len(got[i])) for i in owner]
            samplers = [_sampling.mixed(sampler) for *_, sampler in asked]
            request = _requests.as_request(left, [stops for _, _, stops, _ in asked], samplers, SLOTS)
            out, _ = _engine.proceed(_engine.Inputs(model(), request), 16, slots)
            slots = out.rows
            for slot, i in enumerate(owner):
                if i >= 0:
                    got[i] += tokens_of(out, slot)
                    if bool(out.finished[slot]) or len(got[i]) == REQUESTS[i][1]:
                        owner[slot] = -1
    assert got == {i: tokens_of(alone(i)) for i in range(len(REQUESTS))}
    assert events.count("jit(proceed)") == 1


def test_a_row_at_its_limit_goes_on_as_if_alone():
    """It is not finished; its cache, logits and random state wait."""
    sampler = ssmkit.Sampler(temperature=2.0)
    prompts = [[3, 1], [4], [1, 5, 9]]
    whole = ssmkit.generate(model(), prompts, 9, sampler, key=KEY)
    first = ssmkit.generate(model(), prompts, [2, 9, 0], sampler, key=KEY)
    assert first.lengths.tolist() == [2, 9, 0] and not first.finished.any()
    rest = ssmkit.resume(model(), first, [7, 0, 9], sampler)
    for i in range(3):
        assert tokens_of(first, i) + tokens_of(rest, i) == tokens_of(whole, i)
    assert first.tokens[0].tolist() == [*whole.tokens[0, :2].tolist(), *[int(whole.tokens[0, 1])] * 7]
    np.testing.assert_array_equal(rest.rows.keys, whole.rows.keys)


def test_stop_tokens_by_row():
    free = ssmkit.generate(model(), [[3], [3], [3]], 6, stop_token=()).tokens[0].tolist()
    out = ssmkit.generate(model(), [[3], [3], [3]], 6, stop_token=[[free[0]], (), free[1]])
    assert [tokens_of(out, i) for i in range(3)] == [free[:1], free, free[: free.index(free[1]) + 1]]
    assert out.finished.tolist() == [True, False, True]


def test_filters_that_are_off_change_nothing():
    """Bit for bit: no token loses its chance, however improbable."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=1000) * 30, jnp.float32)
    plain = ssmkit.Sampler(temperature=1.7)
    full = _sampling.mixed(plain).sampler
    history = jnp.ones(1000, bool)
    np.testing.assert_array_equal(full.filtered(logits, history), plain.filtered(logits, None))


def test_samplers_of_ones_own_cannot_be_mixed():
    class Last(ssmkit.AbstractSampler):
        needs_key = needs_history = False  # pyright: ignore

        def __call__(self, logits, *, key, history):
            return jnp.int32(1)

    with pytest.raises(ValueError, match=r"`sampler` must be .* in every row, .* got \['Greedy', 'Last'\]"):
        ssmkit.generate(model(), [[1], [2]], 2, [ssmkit.Greedy(), Last()])


# The axis


def some(n: int = 3):
    return {"a": jnp.arange(2 * n, dtype=jnp.float32).reshape(n, 2), "b": (jnp.arange(n) > 0,), "name": "x"}


def test_take_put_fork_and_where():
    tree = some()
    row = rows.take(tree, 2)
    assert row["name"] == "x" and row["a"].tolist() == [4.0, 5.0] and bool(row["b"][0])
    assert trees_equal_bitwise(rows.take(tree, jnp.array([2, 0]))["a"], tree["a"][jnp.array([2, 0])])
    written = rows.put(tree, 0, row)
    assert written["a"].tolist() == [[4.0, 5.0], [2.0, 3.0], [4.0, 5.0]]
    assert rows.fork(row, 2)["a"].tolist() == [[4.0, 5.0]] * 2
    chosen = rows.where(jnp.array([True, False, False]), written, tree)
    assert trees_equal_bitwise((chosen["a"], chosen["b"]), (written["a"], written["b"]))
    assert jax.jit(rows.take)(tree["a"], 1).tolist() == [2.0, 3.0]


def test_empty_rows():
    cache = rows.init(model(), 3)
    for got, one in zip(jax.tree.leaves(cache), jax.tree.leaves(model().init_cache()), strict=True):
        assert got.dtype == one.dtype and got.shape == (3, *one.shape)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: rows.take(some(), 3), r"`i` must be a row in \[0, 3\), got 3"),
        (lambda: rows.take(some(), -1), r"`i` must be a row in \[0, 3\), got -1"),
        (lambda: rows.put(some(), 5, rows.take(some(), 0)), r"`i` must be a row in \[0, 3\), got 5"),
        (lambda: rows.put(some(), 0, {"a": jnp.zeros(2)}), "`row` must have the structure of a row"),
        (
            lambda: rows.put(some()["a"], 0, jnp.zeros(3, jnp.float32)),
            r"expected float32\(2,\), got float32\(3,\) at `row`",
        ),
        (lambda: rows.put(some()["a"], 0, jnp.zeros(2, jnp.int32)), r"expected float32\(2,\), got int32\(2,\)"),
        (lambda: rows.take((jnp.zeros(2), jnp.zeros((3, 1))), 0), "one leading batch axis on every array"),
        (lambda: rows.fork(some(), -1), "`n` must be a number of rows, an integer of at least 0, got -1"),
        (lambda: rows.fork(some(), True), "`n` must be a number of rows"),
    ],
)
def test_what_rows_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
