"""The generation engine against naive re-forwarding: greedy tokens, ragged batches, stop tokens."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generating import (
    BATCH,
    ROWS,
    VOCAB,
    Counting,
    assert_close,
    assert_consumed,
    assert_greedy,
    assert_same,
    cut,
    forward,
    mamba2,
    middle_stop,
    naive,
    row,
    toy,
)

import ssmkit


pytestmark = pytest.mark.usefixtures("quick_compilation")


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


def test_the_pieces_of_a_prompt_do_not_matter():
    """An accelerator consumes prompts in longer pieces, which depend on the number of rows."""
    model, random = mamba2(), np.random.default_rng(1)
    prompts = [random.integers(0, VOCAB, length).tolist() for length in (5, 700, 1100)]
    expected = ssmkit.generate(model, prompts, 4)
    with ssmkit.kernels.target("gpu"):
        for i, prompt in enumerate(prompts):
            alone = ssmkit.generate(model, [prompt], 4)
            assert alone.tokens[0].tolist() == expected.tokens[i].tolist()
        together = ssmkit.generate(model, prompts, 4)
    assert_close(together.rows, expected.rows)


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
