"""A generation goes on: in parts, with further prompts, with its own random state or another."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generating import (
    BATCH,
    ROWS,
    SAMPLER,
    VOCAB,
    assert_close,
    assert_consumed,
    assert_greedy,
    assert_same,
    mamba2,
    middle_stop,
    row,
    toy,
)

import ssmkit


pytestmark = pytest.mark.usefixtures("quick_compilation")


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


# Caches that hold little


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
    for prompt, line in zip(prompts, np.concatenate([out.tokens, more.tokens], axis=1), strict=True):
        token = prompt[-1]
        for chosen in line:
            token = int(jnp.argmax(model.table[token]))
            assert chosen == token
