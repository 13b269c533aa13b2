"""What is compiled for generation, and what is not compiled again; sizes of buckets."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generating import ROWS, SAMPLER, VOCAB, Counting, compilations, mamba2, toy
from helpers import trees_close

import ssmkit
from ssmkit.generation import _prompts, _requests


pytestmark = pytest.mark.usefixtures("quick_compilation")


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


def test_a_generation_is_copied_by_one_executable():
    """`resume` donates a copy of the rows. A call for each array of a deep model would take longer than a token."""
    config = ssmkit.LanguageModelConfig(vocab_size=37, hidden_size=12, layers=[{"mixer": "retnet", "num_heads": 3}] * 3)
    model = ssmkit.build(config, key=jax.random.key(0))  # of sizes that no other test has
    out = ssmkit.generate(model, [[1, 2]], 2)
    with compilations() as events:
        ssmkit.resume(model, out, 2)
    assert [name for name in events if "cop" in name] == ["jit(_copied)"] and "jit(proceed)" in events, events


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


@pytest.mark.parametrize(("length", "size"), [(1, 16), (16, 16), (17, 32), (32, 32), (512, 512), (513, 1024)])
def test_buckets(length, size):
    assert _prompts.bucket(length) == size


def test_stop_tokens_are_filled_up_with_what_is_no_token():
    for count, size in ((0, 8), (1, 8), (7, 8), (8, 16), (9, 16)):
        request = _requests.as_request([1, 2], [list(range(count)), [3]], [ssmkit.Greedy()] * 2, 3)
        assert request.stops[0].tolist() == [*range(count), *[-1] * (size - count)]
        assert request.stops[1:].tolist() == [[3, *[-1] * (size - 1)], [-1] * size]
        assert request.limits.tolist() == [1, 2, 0]
