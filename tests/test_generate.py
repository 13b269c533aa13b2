"""The generation engine against naive re-forwarding, and against itself: alone, in a batch, in parts, as a stream."""

import contextlib
import functools
import itertools
import operator
from typing import Any

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import trees_close, trees_equal_bitwise

import ssmkit
from ssmkit.generation import _generate, _prompts, _requests
from ssmkit.models import Mamba2, Mamba2Config, ToySSM


VOCAB = 29
# One batch size, one bucket and one sampler for almost everything: few executables are compiled.
BATCH, BOUND = 4, 1e-5
SHORT, LONG = 64, 1024
SAMPLER = ssmkit.Sampler(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.2)
ROWS = [
    [3, 1, 4, 1, 5],
    [9],
    [2, 6, 5, 3, 5, 8, 9, 7, 9, 3],
    [23, 8, 4],
]


@functools.cache
def mamba2():
    config = Mamba2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        state_size=8,
        head_dim=8,
        n_groups=2,
        pad_vocab_size_multiple=8,
    )
    model = Mamba2(config, key=jax.random.key(0))
    return eqx.tree_at(lambda m: m.head.weight, model, replace_fn=lambda weight: 10 * weight)


@functools.cache
def toy():
    model = ToySSM(VOCAB, width=16, layers=1, heads=2, key=jax.random.key(1))
    # A tied head says the last token again unless the block says more.
    model = eqx.tree_at(lambda m: m.blocks[0].mixer.out_proj.weight, model, replace_fn=lambda weight: 400 * weight)
    return eqx.tree_at(lambda m: m.embedding.weight, model, replace_fn=lambda weight: 20 * weight)


MODELS = {"mamba2": mamba2, "toy": toy}


CASES = [("mamba2", ssmkit.Greedy()), ("mamba2", SAMPLER), ("toy", ssmkit.Greedy())]


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """What is computed matters here, not how fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=list(MODELS))
def model(request):
    return MODELS[request.param]()


@pytest.fixture(params=CASES, ids=["mamba2-greedy", "mamba2-sampler", "toy-greedy"])
def case(request):
    """A model and the arguments that a sampler needs."""
    name, sampler = request.param
    return MODELS[name](), {"sampler": sampler, "key": jax.random.key(7) if sampler.needs_key else None}


@eqx.filter_jit
def _forward(model, tokens):
    return model(tokens)


@eqx.filter_jit
def _prefill(model, tokens, length):
    return model.prefill(tokens, model.init_cache(), length=length)


def padded(ids, width):
    return jnp.asarray(np.pad(np.asarray(ids, np.int32), (0, width - len(ids))))


def forward(model, ids):
    """Logits after every token. A causal model does not see the padding."""
    return np.asarray(_forward(model, padded(ids, SHORT if len(ids) <= SHORT else LONG)))[: len(ids)]


def prefill(model, ids):
    return _prefill(model, padded(ids, SHORT if len(ids) <= SHORT else LONG), jnp.asarray(len(ids), jnp.int32))


def naive(model, prompt, count):
    """Greedy tokens by forwarding everything for each; the gap to the second best says whether rounding matters."""
    ids, gaps = list(prompt), []
    for _ in range(count):
        logits = forward(model, ids)[-1]
        second, first = np.sort(logits)[-2:]
        gaps.append(first - second)
        ids.append(int(np.argmax(logits)))
    return ids[len(prompt) :], min(gaps)


def assert_greedy(model, prompt, tokens):
    """Every token is the best after those before it, up to rounding."""
    logits = forward(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
    chosen = logits[np.arange(len(tokens)), tokens]
    np.testing.assert_allclose(chosen, logits.max(axis=-1), rtol=0, atol=1e-3)


def row(tree, i):
    return jax.tree.map(lambda x: np.asarray(x[i]), tree)


def assert_same(a, b):
    assert trees_equal_bitwise(a, b)


def assert_close(a, b):
    assert trees_close(a, b, BOUND)


def assert_consumed(model, prompt, tokens, generation, i=0):
    """The documented invariant: cache and logits are those of the prompt and the row's tokens."""
    logits, cache = prefill(model, [*prompt, *tokens])
    assert_close(row((generation.cache, generation.rows.logits), i), (cache, logits))


def cut(tokens, stops):
    """What a stop token leaves of each row of an uninterrupted generation: lengths, flags and filled tokens."""
    lengths, finished, filled = [], [], np.array(tokens)
    for line in filled:
        hits = np.flatnonzero(np.isin(line, stops))
        end = hits[0] + 1 if hits.size else len(line)
        line[end:] = line[end - 1]
        lengths.append(end)
        finished.append(hits.size > 0)
    return np.array(lengths), np.array(finished), filled


def middle_stop(tokens):
    """An id that ends some rows in the middle, but not all; not 0, which buffers hold anyway."""
    for stop in range(1, VOCAB):
        lengths, finished, _ = cut(tokens, [stop])
        inside = (lengths > 1) & (lengths < tokens.shape[1])
        if inside.any() and not finished.all():
            return stop
    raise AssertionError("no such id: choose another model or key")


# What is generated


def test_greedy_is_the_argmax_of_forwarding_everything(model):
    expected, gap = naive(model, ROWS[0], 16)
    assert gap > 1e-3 and len(set(expected)) > 4, "choose a model whose continuation says more"
    out = ssmkit.generate(model, [ROWS[0]], 16)
    assert out.tokens.tolist() == [expected]
    assert out.lengths.tolist() == [16] and out.finished.tolist() == [False]
    assert_consumed(model, ROWS[0], expected, out)


def test_a_ragged_batch_equals_each_prompt_alone(model):
    random = np.random.default_rng(0)
    prompts = [random.integers(0, VOCAB, length).tolist() for length in (1, 3, 17, 700)]
    together = ssmkit.generate(model, prompts, 8)
    for i, prompt in enumerate(prompts):
        alone = ssmkit.generate(model, [prompt], 8)
        assert together.tokens[i].tolist() == alone.tokens[0].tolist()
        assert_close(row((together.cache, together.rows.logits), i), row((alone.cache, alone.rows.logits), 0))
        assert_greedy(model, prompt, alone.tokens[0].tolist())


def test_a_padded_array_with_lengths_is_a_list():
    model = mamba2()
    lengths = [len(ids) for ids in ROWS]
    array = np.full((BATCH, 12), -100)  # what stands in the padding does not matter
    for target, ids in zip(array, ROWS, strict=True):
        target[: len(ids)] = ids
    expected = ssmkit.generate(model, ROWS, 5)
    assert_same(ssmkit.generate(model, array, 5, lengths=lengths), expected)
    assert_same(ssmkit.generate(model, jnp.asarray(array), 5, lengths=jnp.asarray(lengths)), expected)
    assert_same(ssmkit.generate(model, array.astype(np.int16), 5, lengths=np.asarray(lengths)), expected)
    square = np.array([ids[:1] * 4 for ids in ROWS])
    assert_same(ssmkit.generate(model, square, 5), ssmkit.generate(model, square.tolist(), 5))


def test_any_number_of_tokens():
    model = mamba2()
    longest = ssmkit.generate(model, ROWS, 20)
    assert longest.tokens.shape == (BATCH, 20)
    for count in (0, 1, 7, 16):
        out = ssmkit.generate(model, ROWS, count)
        assert out.tokens.shape == (BATCH, count) and out.tokens.dtype == jnp.int32
        assert out.tokens.tolist() == longest.tokens[:, :count].tolist()
        assert out.lengths.tolist() == [count] * BATCH and not out.finished.any()
        for i, ids in enumerate(ROWS):
            assert_consumed(model, ids, longest.tokens[i, :count].tolist(), out, i)


@hypothesis.given(st.data())
def test_random_prompts_in_two_parts(draw):
    ids = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=16)
    prompts = draw.draw(st.lists(ids, min_size=BATCH, max_size=BATCH), label="prompts")
    first, second = draw.draw(st.tuples(st.integers(1, 16), st.integers(1, 16)), label="numbers of tokens")
    model = mamba2()
    start = ssmkit.generate(model, prompts, first)
    end = ssmkit.resume(model, start, second)
    for i, prompt in enumerate(prompts):
        tokens = start.tokens[i].tolist() + end.tokens[i].tolist()
        assert_greedy(model, prompt, tokens)
        assert_consumed(model, prompt, tokens, end, i)


def test_history_is_the_prompt_and_what_was_generated():
    """With one candidate, a repetition penalty is deterministic. Padding, whose id is 0, has not been seen."""
    model, penalty = mamba2(), 4.0
    narrow = ssmkit.Sampler(temperature=0.9, top_k=1, top_p=0.95, min_p=0.01, repetition_penalty=penalty)
    out = ssmkit.generate(model, ROWS, 12, narrow, key=jax.random.key(0))
    plain = ssmkit.generate(model, ROWS, 12)
    assert (out.tokens != plain.tokens).any()
    assert plain.rows.history is None and out.rows.history is not None
    for i, prompt in enumerate(ROWS):
        ids = list(prompt)
        for token in out.tokens[i].tolist():
            logits, seen = forward(model, ids)[-1], np.isin(np.arange(VOCAB), ids)
            logits = np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits)
            assert logits[token] >= logits.max() - 1e-3
            ids.append(token)
        np.testing.assert_array_equal(out.rows.history[i], np.isin(np.arange(VOCAB), ids))


def test_a_sampler_of_ones_own():
    class Favourite(ssmkit.AbstractSampler):
        token: int

        @property
        def needs_key(self):
            return False

        @property
        def needs_history(self):
            return False

        def __call__(self, logits, *, key, history):
            return jnp.asarray(self.token, jnp.int32)

    assert ssmkit.generate(toy(), [[1]], 3, Favourite(5)).tokens.tolist() == [[5, 5, 5]]


# Stopping


def test_stop_tokens(case):
    model, arguments = case
    free = ssmkit.generate(model, ROWS, 16, **arguments)
    tokens = np.asarray(free.tokens)
    one = middle_stop(tokens)
    every = sorted({*tokens[:, 2].tolist(), one})
    for stops in (one, [one], (one, int(tokens[0, 0])), every, []):
        lengths, finished, filled = cut(tokens, np.ravel(stops))
        out = ssmkit.generate(model, ROWS, 16, stop_token=stops, **arguments)
        np.testing.assert_array_equal(out.tokens, filled)
        np.testing.assert_array_equal(out.lengths, lengths)
        np.testing.assert_array_equal(out.finished, finished)
        if out.rows.history is not None:
            for i, ids in enumerate(ROWS):
                seen = np.isin(np.arange(VOCAB), [*ids, *filled[i]])
                np.testing.assert_array_equal(out.rows.history[i], seen)


def test_a_row_that_stopped_stays_as_it_was(case):
    model, arguments = case
    free = ssmkit.generate(model, ROWS, 16, **arguments)
    stop = middle_stop(np.asarray(free.tokens))
    out = ssmkit.generate(model, ROWS, 16, stop_token=stop, **arguments)
    assert int(out.lengths.max()) == 16
    for i in np.flatnonzero(out.finished).tolist():
        length = int(out.lengths[i])
        short = ssmkit.generate(model, ROWS, length, **arguments)
        kept = lambda g: (g.cache, g.rows.logits, g.rows.keys, g.rows.history)
        assert_same(row(kept(out), i), row(kept(short), i))
        assert_consumed(model, ROWS[i], out.tokens[i, :length].tolist(), out, i)


class Counting(ssmkit.AbstractLanguageModel[Any]):
    """After each id the next one, and the end of its text at 5 and 9."""

    vocab_size: int = eqx.field(static=True, default=VOCAB)

    @property
    def stop_tokens(self):
        return (5, 9)

    def init_cache(self):
        return ()

    def prefill(self, tokens, cache, extent=ssmkit.Extent()):
        last = tokens.shape[0] if extent.length is None else extent.length
        return self.step(tokens[jnp.maximum(last, 1) - 1], cache)

    def step(self, token, cache, valid=None):
        return jax.nn.one_hot(token + 1, VOCAB, dtype=jnp.float32), cache

    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        return jax.nn.one_hot(tokens + 1, VOCAB, dtype=jnp.float32), cache


@pytest.mark.parametrize(
    "stop, ends",
    [(None, [5, 9]), ((), [9, 13]), ([], [9, 13]), (7, [7, 7]), ([8, 5], [5, 8])],
    ids=["the model's own", "none", "an empty list", "one instead", "several instead"],
)
def test_the_models_own_stop_tokens_are_the_default(stop, ends):
    model = Counting()
    out = ssmkit.generate(model, [[1], [2, 5]], 8, stop_token=stop)
    last = out.tokens[jnp.arange(2), out.lengths - 1]
    assert last.tolist() == ends
    assert out.finished.tolist() == [stop not in ((), [])] * 2
    first = ssmkit.generate(model, [[1], [2, 5]], 1, stop_token=())
    more = ssmkit.resume(model, first, 7, stop_token=stop)
    assert more.tokens[jnp.arange(2), more.lengths - 1].tolist() == ends
    assert list(ssmkit.stream(model, [1], 8, stop_token=stop))[-1] == ends[0]


# Going on


@pytest.mark.parametrize("stopping", [False, True], ids=["free", "stop"])
def test_resume_equals_one_generation(case, stopping):
    model, arguments = case
    free = ssmkit.generate(model, ROWS, 16, **arguments)
    stop = middle_stop(np.asarray(free.tokens)) if stopping else None
    whole = ssmkit.generate(model, ROWS, 16, stop_token=stop, **arguments)
    # Split before and after the row that stops first does.
    for first in (1, min(int(whole.lengths.min()), 15), 13):
        start = ssmkit.generate(model, ROWS, first, stop_token=stop, **arguments)
        end = ssmkit.resume(model, start, 16 - first, arguments["sampler"], stop_token=stop)
        # Side by side, parts are the whole: a row that had finished is filled with its stop token in the second too.
        np.testing.assert_array_equal(jnp.concatenate([start.tokens, end.tokens], axis=1), whole.tokens)
        np.testing.assert_array_equal(start.lengths + end.lengths, whole.lengths)
        np.testing.assert_array_equal(end.finished, whole.finished)
        np.testing.assert_array_equal(end.rows.keys, whole.rows.keys)
        assert_close((end.cache, end.rows.logits), (whole.cache, whole.rows.logits))
        assert_same(row(end.rows.history, ...), row(whole.rows.history, ...))
        for i in np.flatnonzero(start.finished).tolist():
            assert end.lengths[i] == 0
            assert_same(row((end.cache, end.rows.logits), i), row((start.cache, start.rows.logits), i))


def test_resume_from_the_prompt_only():
    model = mamba2()
    start = ssmkit.generate(model, ROWS, 0)
    out = ssmkit.resume(model, start, 9)
    np.testing.assert_array_equal(out.tokens, ssmkit.generate(model, ROWS, 9).tokens)
    nothing = ssmkit.resume(model, out, 0)
    assert nothing.tokens.shape == (BATCH, 0) and nothing.lengths.tolist() == [0] * BATCH
    assert_same(nothing.cache, out.cache)
    np.testing.assert_array_equal(ssmkit.resume(model, nothing, 7).tokens, ssmkit.resume(model, out, 7).tokens)


def test_resume_when_all_have_finished():
    model = toy()
    stops = ssmkit.generate(model, ROWS, 1).tokens[:, 0].tolist()
    out = ssmkit.generate(model, ROWS, 3, stop_token=stops)
    assert out.lengths.tolist() == [1] * BATCH and bool(out.finished.all())
    again = ssmkit.resume(model, ssmkit.resume(model, out, 2), 2)
    assert again.lengths.tolist() == [0] * BATCH
    np.testing.assert_array_equal(again.tokens, out.tokens[:, :2])
    assert_same(again.cache, out.cache)


def test_a_further_prompt_continues_the_first(model):
    first = ssmkit.generate(model, ROWS, 6)
    more = [[7, 7], [1, 2, 3, 4, 5, 6], [0], [28, 0, 28]]
    second = ssmkit.generate(model, more, 9, cache=first.cache)
    for i, (ids, new) in enumerate(zip(ROWS, more, strict=True)):
        ids = [*ids, *first.tokens[i].tolist(), *new]
        assert_greedy(model, ids, second.tokens[i].tolist())
        assert_consumed(model, ids, second.tokens[i].tolist(), second, i)


def test_a_new_cache_is_an_empty_one():
    model = mamba2()
    cache = jax.tree.map(lambda x: np.zeros((BATCH, *x.shape), x.dtype), model.init_cache())  # NumPy will do
    assert_close(ssmkit.generate(model, ROWS, 9, cache=cache), ssmkit.generate(model, ROWS, 9))


def test_nothing_that_is_passed_is_consumed():
    model, key = mamba2(), jax.random.split(jax.random.key(3), BATCH)
    out = ssmkit.generate(model, ROWS, 6, SAMPLER, key=key)
    before = jax.tree.map(np.array, out)
    for _ in range(2):
        ssmkit.resume(model, out, 6, SAMPLER)
        ssmkit.generate(model, ROWS, 6, cache=out.cache)
    for leaf in jax.tree.leaves((model, out, key, SAMPLER)):
        assert not (isinstance(leaf, jax.Array) and leaf.is_deleted())
    assert_same(jax.tree.map(np.array, out), before)


# Random keys


def test_one_key_is_folded_by_row():
    model, key = mamba2(), jax.random.key(7)
    expected = ssmkit.generate(model, ROWS, 12, SAMPLER, key=key)
    rows = jnp.stack([jax.random.fold_in(key, i) for i in range(BATCH)])
    for same in (rows, jax.random.key_data(key), jax.random.key_data(rows)):
        assert_same(ssmkit.generate(model, ROWS, 12, SAMPLER, key=same), expected)
    other = ssmkit.generate(model, ROWS, 12, SAMPLER, key=jax.random.key(8))
    assert (other.tokens != expected.tokens).any(axis=1).all()
    equal = ssmkit.generate(model, [ROWS[0]] * BATCH, 12, SAMPLER, key=key)
    assert len({tuple(ids) for ids in equal.tokens.tolist()}) == BATCH


def test_a_row_does_not_depend_on_its_batch():
    model, key = mamba2(), jax.random.key(7)
    expected = ssmkit.generate(model, ROWS, 12, SAMPLER, key=key).tokens
    strangers = [ROWS[0], [5, 5], ROWS[2], [11] * 16]
    out = ssmkit.generate(model, strangers, 12, SAMPLER, key=key).tokens
    np.testing.assert_array_equal(out[jnp.array([0, 2])], expected[jnp.array([0, 2])])
    alone = ssmkit.generate(model, [ROWS[0]], 12, SAMPLER, key=key).tokens
    np.testing.assert_array_equal(alone[0], expected[0])
    # A row's own key goes where it goes.
    keys = jnp.stack([jax.random.fold_in(key, i) for i in range(BATCH)])
    order = jnp.array([2, 0, 3, 1])
    shuffled = ssmkit.generate(model, [ROWS[i] for i in order], 12, SAMPLER, key=keys[order]).tokens
    np.testing.assert_array_equal(shuffled, expected[order])


def test_a_generation_without_a_key_has_no_random_state():
    """Or everybody would get the same "random" text."""
    model, sampler = mamba2(), ssmkit.Sampler(temperature=3.0)
    greedy = ssmkit.generate(model, ROWS, 4)
    assert greedy.rows.key_kind is None
    with pytest.raises(ValueError, match=r"`key` is needed by Sampler: `generation` was made without one; pass `key="):
        ssmkit.resume(model, greedy, 12, sampler)
    # A key that came with greedy choices is kept for what follows.
    kept = ssmkit.resume(model, ssmkit.generate(model, ROWS, 4, key=jax.random.key(1)), 12, sampler)
    again = ssmkit.resume(model, greedy, 12, sampler, key=jax.random.key(1))
    np.testing.assert_array_equal(kept.tokens, again.tokens)
    assert (again.tokens != ssmkit.resume(model, greedy, 12, sampler, key=jax.random.key(2)).tokens).any()


def test_copies_of_a_row_go_their_own_ways_with_a_key():
    """Without one they stay copies, of one random state."""
    model, sampler = mamba2(), ssmkit.Sampler(temperature=3.0)
    start = ssmkit.generate(model, [ROWS[0]], 4, sampler, key=jax.random.key(1))
    copies = jax.tree.map(lambda x: jnp.repeat(x, BATCH, axis=0), start)
    distinct = lambda generation: len({tuple(ids) for ids in generation.tokens.tolist()})
    assert distinct(ssmkit.resume(model, copies, 12, sampler)) == 1
    expected = ssmkit.resume(model, copies, 12, sampler, key=jax.random.key(5))
    assert distinct(expected) == BATCH
    rows = jnp.stack([jax.random.fold_in(jax.random.key(5), i) for i in range(BATCH)])
    assert_same(ssmkit.resume(model, copies, 12, sampler, key=rows), expected)
    # What follows goes on from the new key.
    short = ssmkit.resume(model, copies, 5, sampler, key=jax.random.key(5))
    rest = ssmkit.resume(model, short, 7, sampler)
    np.testing.assert_array_equal(jnp.concatenate([short.tokens, rest.tokens], axis=1), expected.tokens)


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_of_another_kind(kind):
    model = toy()
    key = jax.random.key(3, impl=kind)
    out = ssmkit.generate(model, ROWS, 2, ssmkit.Sampler(), key=key)
    assert out.rows.key_kind == kind
    more = ssmkit.resume(model, out, 2, ssmkit.Sampler())
    assert more.rows.key_kind == kind and (more.rows.keys != out.rows.keys).any()


# Streaming


def test_stream_equals_generate(case):
    (model, arguments), prompt = case, ROWS[2]
    start = ssmkit.generate(model, [prompt], 16, **arguments)
    tokens = start.tokens[0].tolist() + ssmkit.resume(model, start, 16, arguments["sampler"]).tokens[0].tolist()
    for count in (0, 1, 2, 17, 32):
        assert list(ssmkit.stream(model, prompt, count, **arguments)) == tokens[:count]
    stop = tokens[9]
    end = tokens.index(stop) + 1
    assert list(ssmkit.stream(model, prompt, 32, stop_token=stop, **arguments)) == tokens[:end]
    assert list(ssmkit.stream(model, prompt, 32, stop_token=[tokens[0]], **arguments)) == tokens[:1]
    for same in (tuple(prompt), np.array(prompt), jnp.array(prompt), np.array([prompt])):
        assert list(ssmkit.stream(model, same, 2, **arguments)) == tokens[:2]


def test_stream_sends_the_first_token_at_once_then_several_per_dispatch(monkeypatch):
    asked, proceed = [], _generate.proceed

    def spy(inputs, *rest):
        asked.append(int(inputs.request.limits[0]))
        return proceed(inputs, *rest)

    monkeypatch.setattr(_generate, "proceed", spy)
    stream = ssmkit.stream(mamba2(), ROWS[0], 40)
    assert asked == []
    first = next(stream)
    assert isinstance(first, int) and asked == [1]
    assert len(list(stream)) == 39
    assert asked == [1, 16, 16, 7]
    asked.clear()
    assert len(list(itertools.islice(ssmkit.stream(mamba2(), ROWS[0], 40), 5))) == 5 and asked == [1, 16]
    asked.clear()
    assert list(ssmkit.stream(mamba2(), ROWS[0], 40, stop_token=first)) == [first] and asked == [1]


# Compilation


@contextlib.contextmanager
def compilations():
    events = []

    def listen(event: str, duration_secs: float, *, fun_name: str = "", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_compilations_are_counted():
    with compilations() as events:
        jax.jit(lambda x: x + 1)(np.zeros(3))
    assert len(events) == 1


def test_within_a_bucket_nothing_is_compiled_anew():
    model, key = mamba2(), jax.random.key(0)
    other = ssmkit.Sampler(temperature=2.0, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=3.0)
    keys = [jax.random.fold_in(key, seed) for seed in range(3)]

    def run(prompts, count, sampler, stop, seed):
        out = ssmkit.generate(model, prompts, count, sampler, stop_token=stop, key=keys[seed])
        ssmkit.resume(model, out, count, sampler, stop_token=stop)
        ssmkit.generate(model, prompts, count, cache=out.cache)
        list(ssmkit.stream(model, prompts[0], count, sampler, stop_token=stop, key=keys[seed]))

    run(ROWS, 16, SAMPLER, None, 0)
    with compilations() as events:
        run([[1] * 16, [2], [3, 4], [5] * 7], 16, SAMPLER, None, 0)  # other lengths of prompts
        run(ROWS, 3, SAMPLER, None, 0)  # another number of tokens
        run(ROWS, 16, other, None, 1)  # other values of the sampler, another key
        run(ROWS, 16, SAMPLER, 4, 0)  # stop tokens
        run(ROWS, 11, SAMPLER, [1, 2, 3, 4, 5, 6, 7], 2)
    assert events == []


def test_without_jit():
    """`jax_disable_jit`, which is how one looks inside: Python loops, the same tokens."""
    model, key = toy(), jax.random.key(7)
    expected = ssmkit.generate(model, ROWS[:1], 2, SAMPLER, key=key)
    with jax.disable_jit():
        out = ssmkit.generate(model, ROWS[:1], 2, SAMPLER, key=key)
        more = ssmkit.resume(model, out, 1, SAMPLER)
        assert list(ssmkit.stream(model, ROWS[0], 2, SAMPLER, key=key))[:1]
        assert ssmkit.score(model, ROWS[0]).tokens == len(ROWS[0]) - 1
        gradient = eqx.filter_grad(lambda model: jnp.sum(model(jnp.asarray(ROWS[0]))))(model)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    assert more.lengths.tolist() == [1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_executables_are_bounded_by_buckets():
    """However calls vary: one per bucket of prompt lengths, of new tokens, and of rows, and none per call."""
    model, draw = Counting(), np.random.default_rng(0)

    def run(rows, length, count):
        prompts = [draw.integers(0, VOCAB, draw.integers(1, length + 1)).tolist() for _ in range(rows - 1)]
        ssmkit.generate(model, [*prompts, [1] * length], count, stop_token=draw.integers(0, VOCAB, 3).tolist())

    with compilations() as events:
        for _ in range(60):
            run(int(draw.integers(1, 7)), int(draw.integers(1, 17)), int(draw.integers(1, 33)))
    assert events.count("jit(begin)") <= 5 * 2  # rows: 1, 2, 3, 4, 6; new tokens: 16, 32
    assert events.count("jit(_resized)") <= 2  # five rows of six
    assert len(events) <= 5 * 2 + 2 + 16, events  # what else is compiled is small, and once per shape of a bucket


def test_numbers_of_prompts_share_an_executable():
    """Seven and eight rows are one bucket; what is compiled anew for another number only cuts or repeats rows."""
    model, key = toy(), jax.random.key(0)
    sampler = ssmkit.Sampler(temperature=1.5, repetition_penalty=1.1)
    prompts = [[1 + i] * (1 + i) for i in range(8)]

    def run(count):
        out = ssmkit.generate(model, prompts[:count], 12, sampler, stop_token=3, key=key)
        more = ssmkit.resume(model, out, 5, sampler, stop_token=3)
        again = ssmkit.generate(model, prompts[:count], 4, cache=out.cache)
        return out, more, again

    engine = {"jit(begin)", "jit(proceed)"}
    with compilations() as events:
        outs = run(8)
    assert engine <= set(events)
    with compilations() as events:
        runs = {count: run(count) for count in (7, 8)}
    assert not engine & set(events)
    for count in runs:
        for got, all_rows in zip(runs[count], outs, strict=True):
            expected = jax.tree.map(operator.itemgetter(slice(count)), all_rows)
            assert trees_close(got.cache, expected.cache, 1e-6)
            for name in ("tokens", "lengths", "finished"):
                np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    with compilations() as events:
        run(7)
    assert events == []


def test_a_cache_without_arrays():
    mlp = ssmkit.GatedMLP(8, intermediate_size=12, key=jax.random.key(0))
    model = ssmkit.LanguageModel(vocab_size=11, width=8, mixers=[mlp], key=jax.random.key(1))
    out = ssmkit.generate(model, [[1, 2], [3]], 4)
    again = ssmkit.generate(model, [[1], [2]], 4, cache=out.cache)
    np.testing.assert_array_equal(again.tokens, ssmkit.generate(model, [[1], [2]], 4).tokens)


@pytest.mark.parametrize(
    "rows, size", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (6, 6), (7, 8), (9, 12), (13, 16), (17, 24)]
)
def test_batch_buckets(rows, size):
    assert _prompts.batch_bucket(rows) == size


# What is refused


def call(**changes):
    settings = {"prompts": ROWS, "max_new_tokens": 2, **changes}
    return ssmkit.generate(toy(), settings.pop("prompts"), **settings)


def cache_of(*batch, dtype="float32"):
    """What the toy's cache looks like."""
    return (np.zeros((*batch, 2, 8, 8), dtype),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "`prompts` must hold at least one prompt, got none"),
        ({"prompts": np.zeros((0, 3), int)}, "`prompts` must hold at least one prompt, got none"),
        ({"prompts": [[1], []]}, "prompt 1 is empty: .* such as the BOS id"),
        ({"prompts": np.zeros((2, 0), int)}, "prompt 0 is empty"),
        ({"prompts": [[1], [2, VOCAB]]}, rf"prompt 1 must have ids in \[0, {VOCAB}\), got ids from 2 to {VOCAB}"),
        ({"prompts": [[-1, 3]]}, "prompt 0 must have ids .* got ids from -1 to 3. Is this the model's tokenizer"),
        ({"prompts": np.array([[1.0, 2.0]])}, "`prompts` must be integer ids .* got float64 of shape"),
        ({"prompts": np.array([[True]])}, "`prompts` must be integer ids .* got bool"),
        ({"prompts": np.array([1, 2])}, r"`prompts` must be integer ids of shape \(batch, time\), .* \(2,\)"),
        ({"prompts": np.zeros((1, 2, 3), int)}, "`prompts` must be integer ids"),
        ({"lengths": [5, 1, 10, 3]}, "`lengths` belongs to an array of prompts"),
        ({"prompts": np.ones((2, 3), int), "lengths": [3]}, r"`lengths` must be 2 integers, one per prompt, got \[3\]"),
        ({"prompts": np.ones((1, 3), int), "lengths": np.array([1.5])}, "`lengths` must be 1 integers"),
        ({"prompts": np.ones((1, 3), int), "lengths": np.array(2)}, "`lengths` must be 1 integers"),
        ({"prompts": np.ones((2, 3), int), "lengths": [3, 0]}, r"`lengths` must lie in \[1, 3\], .* got \[3, 0\]"),
        ({"prompts": np.ones((2, 3), int), "lengths": [4, 1]}, r"`lengths` must lie in \[1, 3\], .* got \[4, 1\]"),
        (
            {"prompts": "ROMEO."},
            "`prompts` must be integer ids .*, got 'ROMEO.'. One prompt is a list of one list",
        ),
        ({"prompts": ["ROMEO."]}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got 'ROMEO.'. One prompt"),
        ({"prompts": None}, "`prompts` must be integer ids .*, got None"),
        ({"prompts": [None]}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got None"),
        ({"prompts": 5}, "`prompts` must be integer ids"),
        ({"prompts": [1, 2]}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got int64 of shape \(\)"),
        (
            {"prompts": [[[1], [2, 3]]]},
            r"`prompts\[0\]` must be integer ids of shape \(time,\), got \[\[1\], \[2, 3\]\]",
        ),
        ({"prompts": [[1.5]]}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got float64 of shape \(1,\)"),
        ({"prompts": [[1, "2"]]}, r"`prompts\[0\]` must be .*, got \[1, '2'\]"),
        ({"prompts": [[True]]}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got bool"),
        ({"prompts": {1: 2}}, r"`prompts` must be integer ids .*, got \{1: 2\}"),
        (
            {"prompts": [[2**64]]},
            r"`prompts\[0\]` must be integer ids of shape \(time,\), got \[18446744073709551616\]",
        ),
        (
            {"prompts": np.ones((2, 3), int), "lengths": [[1], [2, 3]]},
            r"`lengths` must be 2 integers, .* got \[\[1\], ",
        ),
        ({"prompts": np.ones((1, 3), int), "lengths": "1"}, "`lengths` must be 1 integers, one per prompt, got '1'"),
        ({"prompts": np.ones((1, 3), int), "lengths": [True]}, r"`lengths` must be 1 integers, .* got \[True\]"),
        ({"max_new_tokens": -1}, "`max_new_tokens` must be an integer in .*, got -1"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be an integer in .*, got True"),
        ({"max_new_tokens": 2.0}, "`max_new_tokens` must be an integer in .*, got 2.0"),
        ({"max_new_tokens": "2"}, "`max_new_tokens` must be an integer in .*, got '2'"),
        ({"max_new_tokens": None}, "`max_new_tokens` must be an integer in .*, got None"),
        ({"max_new_tokens": jnp.array([2])}, "`max_new_tokens` must be one integer, or one per prompt, 4, got 1"),
        ({"max_new_tokens": [2, 3, -1, 4]}, "`max_new_tokens` must be an integer in .*, got -1"),
        ({"sampler": [ssmkit.Greedy()] * 3}, "`sampler` must be one sampler, or one per prompt, 4, got 3"),
        ({"sampler": [ssmkit.Greedy()] * 3 + ["greedy"]}, "`sampler` must be a sampler such as .*, got 'greedy'"),
        ({"sampler": [ssmkit.Greedy()] * 3 + [SAMPLER]}, "`key` is needed by Sampler"),
        ({"stop_token": [[1], None, (), [VOCAB]]}, rf"`stop_token` must have ids in .*, got \[{VOCAB}\]"),
        ({"max_new_tokens": 10**5000}, "`max_new_tokens` must be an integer in .*, got an integer of"),
        ({"sampler": "greedy"}, r"`sampler` must be a sampler such as `ssmkit.Greedy\(\)`, got 'greedy'"),
        ({"key": 0}, r"`key` must be made by `jax.random.key\(seed\)`, got 0"),
        ({"key": jnp.zeros(3)}, r"`key` must be made by `jax.random.key\(seed\)`, got Array\(\[0., 0., 0.\]"),
        ({"key": jnp.zeros(3, jnp.uint32)}, r"`key` must be made by `jax.random.key\(seed\)`"),
        ({"stop_token": "end"}, r"`stop_token` must have ids in .*, got \['end'\]"),
        ({"stop_token": True}, r"`stop_token` must have ids in .*, got \[True\]"),
        ({"stop_token": [[1], [2, 3]]}, "`stop_token` must be ids for all prompts, or one entry per prompt, 4, got 2"),
        ({"stop_token": VOCAB}, rf"`stop_token` must have ids in \[0, {VOCAB}\), got \[{VOCAB}\]"),
        ({"stop_token": [3, -1]}, r"`stop_token` must have ids .* got \[-1\]"),
        ({"sampler": SAMPLER}, r"`key` is needed by Sampler: pass `key=jax.random.key\(seed\)`"),
        (
            {"key": jax.random.split(jax.random.key(0), 3)},
            r"`key` must be one key or one per prompt, 4, got shape \(3,\)",
        ),
        ({"cache": ()}, "`cache` must have the structure of `model.init_cache"),
        ({"cache": cache_of(3)}, r"leading batch axis of 4 .* got float32\(3, .* expected float32\(4, "),
        ({"cache": cache_of(4, dtype="float16")}, r"`cache` must .* got float16\(4, .* expected float32\(4, "),
        ({"cache": cache_of()}, "`cache` must have a leading batch axis of 4"),
    ],
)
def test_what_generate_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_what_resume_refuses():
    model = toy()
    out = ssmkit.generate(model, ROWS, 2)
    with pytest.raises(ValueError, match="`max_new_tokens` must be an integer in .*, got -3"):
        ssmkit.resume(model, out, -3)
    with pytest.raises(ValueError, match="`stop_token` must have ids"):
        ssmkit.resume(model, out, 2, stop_token=VOCAB)
    with pytest.raises(
        ValueError, match="`sampler` has a repetition penalty, but `generation` was made by one without"
    ):
        ssmkit.resume(model, out, 2, SAMPLER)
    with pytest.raises(ValueError, match="`cache` must have the structure of `model.init_cache"):
        ssmkit.resume(mamba2(), out, 2)
    fewer = eqx.tree_at(lambda g: g.rows.cache, out, jax.tree.map(lambda x: x[:3], out.cache))
    with pytest.raises(ValueError, match="leading batch axis of 4"):
        ssmkit.resume(model, fewer, 2)


def test_what_is_no_model_is_refused():
    for call in (ssmkit.generate, ssmkit.stream):
        with pytest.raises(ValueError, match="`model` must be an `ssmkit.AbstractLanguageModel`, got NoneType"):
            call(None, [[1]])


def test_integers_of_every_library():
    model = toy()
    expected = ssmkit.generate(model, ROWS, 3, stop_token=4).tokens
    for kind in (np.int64, np.uint8, jnp.asarray):
        np.testing.assert_array_equal(ssmkit.generate(model, ROWS, kind(3), stop_token=kind(4)).tokens, expected)


def other_vocabulary():
    """A model whose cache is of the toy's form."""
    return ToySSM(VOCAB + 2, width=16, layers=1, heads=2, key=jax.random.key(1))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda out: None, "`generation` must be what `ssmkit.generate` returns, got NoneType"),
        (lambda out: out.cache, "`generation` must be what `ssmkit.generate` returns, got tuple"),
        (
            lambda out: ssmkit.generate(other_vocabulary(), ROWS, 2),
            r"`generation` is not of this model: `logits` must have the axes \('batch', 'vocab'\) with "
            rf"{{'batch': 4, 'vocab': {VOCAB}}}, got shape \(4, {VOCAB + 2}\)",
        ),
        (
            lambda out: eqx.tree_at(lambda g: g.rows.finished, out, out.finished[:2]),
            r"`finished` must have the axes \('batch',\) with {'batch': 4, .*, got shape \(2,\)",
        ),
        (lambda out: eqx.tree_at(lambda g: g.rows.keys, out, out.rows.keys[:2]), "`keys` must have the axes"),
    ],
    ids=["nothing", "a cache", "another vocabulary", "half of the flags", "half of the keys"],
)
def test_generations_that_do_not_fit(change, message):
    model = toy()
    with pytest.raises(ValueError, match=message):
        ssmkit.resume(model, change(ssmkit.generate(model, ROWS, 2)), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [[1, 2], [3]]}, "`prompt` must be one sequence of ids, got 2. Use `generate` for a batch"),
        ({"prompt": "ROMEO."}, r"`prompt` must be integer ids of shape \(time,\), got 'ROMEO.'"),
        ({"prompt": None}, r"`prompt` must be integer ids of shape \(time,\), got None"),
        ({"prompt": [[1], 2]}, "`prompt` must be one sequence of ids, got 2"),
        ({"prompt": np.ones((1, 2, 3), int)}, r"`prompt` must be integer ids of shape \(time,\), got int64 of shape"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be an integer in"),
        ({"sampler": None}, "`sampler` must be a sampler such as"),
        ({"prompt": []}, "prompt 0 is empty"),
        ({"prompt": np.array([VOCAB])}, "prompt 0 must have ids"),
        ({"prompt": np.array([1.0])}, r"must be integer ids of shape \(time,\), got float64"),
        ({"prompt": np.ones((2, 3), int)}, "`prompt` must be one sequence of ids, got 2. Use `generate` for a batch"),
        ({"max_new_tokens": -1}, "`max_new_tokens` must be an integer in"),
        ({"stop_token": -5}, "`stop_token` must have ids"),
        ({"sampler": SAMPLER}, "`key` is needed by Sampler"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, "`key` must be one key or one per prompt, 1"),
    ],
)
def test_stream_refuses_at_the_call(changes, message):
    settings = {"prompt": [1, 2], **changes}
    with pytest.raises(ValueError, match=message):
        ssmkit.stream(toy(), **settings)


def test_numbers_that_are_not_finite_are_reported(model):
    broken = eqx.tree_at(lambda m: m.norm.weight, model, replace_fn=lambda weight: weight * jnp.nan)
    with pytest.raises(
        FloatingPointError, match=r"not finite in rows \[0, 1, 2, 3\]: its weights or its cache hold NaN"
    ):
        ssmkit.generate(broken, ROWS, 9)
    with pytest.raises(FloatingPointError, match=r"rows \[0\]"):
        next(ssmkit.stream(broken, ROWS[0], 9))
    out = ssmkit.generate(model, ROWS, 9)
    poisoned = jax.tree.map(lambda x: x.at[2].set(jnp.nan), out.cache)
    with pytest.raises(FloatingPointError, match=r"rows \[2\]"):
        ssmkit.generate(model, ROWS, 9, cache=poisoned)
    with pytest.raises(FloatingPointError, match=r"rows \[2\]"):
        ssmkit.resume(model, eqx.tree_at(lambda g: g.rows.cache, out, poisoned), 9)


# Prompts


@pytest.mark.parametrize(("length", "size"), [(1, 16), (16, 16), (17, 32), (32, 32), (512, 512), (513, 1024)])
def test_buckets(length, size):
    assert _prompts.bucket(length) == size


def test_stop_tokens_are_filled_up_with_what_is_no_token():
    for count, size in ((0, 8), (1, 8), (7, 8), (8, 16), (9, 16)):
        request = _requests.as_request([1, 2], [list(range(count)), [3]], [ssmkit.Greedy()] * 2, 3)
        assert request.stops[0].tolist() == [*range(count), *[-1] * (size - count)]
        assert request.stops[1:].tolist() == [[3, *[-1] * (size - 1)], [-1] * size]
        assert request.limits.tolist() == [1, 2, 0]


class Bigram(ssmkit.AbstractLanguageModel[None]):
    """A model that remembers nothing, and whose cache is not even a tuple."""

    table: jax.Array
    vocab_size: int = eqx.field(static=True, default=VOCAB)

    def init_cache(self):
        return None

    def prefill(self, tokens, cache, extent=ssmkit.Extent()):
        last = tokens.shape[0] if extent.length is None else extent.length
        return self.table[tokens[jnp.maximum(last, 1) - 1]], None

    def step(self, token, cache, valid=None):
        return self.table[token], None

    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        return self.table[tokens], None


@pytest.mark.parametrize("prompts", [[[1, 2]], [[1, 2], [3]]], ids=["one prompt", "two"])
def test_a_cache_may_be_nothing(prompts):
    model = Bigram(jax.random.normal(jax.random.key(0), (VOCAB, VOCAB), jnp.float32))
    out = ssmkit.generate(model, prompts, 4)
    more = ssmkit.resume(model, out, 3)
    for prompt, row in zip(prompts, np.concatenate([out.tokens, more.tokens], axis=1), strict=True):
        token = prompt[-1]
        for chosen in row:
            token = int(jnp.argmax(model.table[token]))
            assert chosen == token
