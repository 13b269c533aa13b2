"""Tokens as they come, and the generation that they amount to."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from generating import ROWS, Counting, assert_close, mamba2, toy

import ssmkit
from ssmkit.generation import _task


pytestmark = pytest.mark.usefixtures("quick_compilation")


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
    for same in (tuple(prompt), np.array(prompt), jnp.array(prompt)):
        assert list(ssmkit.stream(model, same, 2, **arguments)) == tokens[:2]


def test_stream_sends_the_first_token_at_once_then_several_per_dispatch(monkeypatch):
    asked, proceed = [], _task.proceed

    def spy(inputs, *rest):
        asked.append(int(inputs.request.limits[0]))
        return proceed(inputs, *rest)

    monkeypatch.setattr(_task, "proceed", spy)
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


def test_a_stream_ends_with_the_generation(case):
    """The whole of it, in every array, whatever the turns were; and no sooner."""
    model, arguments = case
    stream = ssmkit.stream(model, ROWS, [3, 25, 0, 17], **arguments)
    expected = ssmkit.generate(model, ROWS, [3, 25, 0, 17], **arguments)
    first = next(stream)
    assert first[2] is None and None not in first[:2]
    with pytest.raises(ValueError, match="`generation` is there when the stream has ended"):
        _ = stream.generation
    items = [first, *stream]
    assert len(items) == 25 and items[-1].count(None) == 3
    columns = [[token for token in column if token is not None] for column in zip(*items, strict=True)]
    assert columns == [row[:n] for row, n in zip(expected.tokens.tolist(), expected.lengths.tolist(), strict=True)]
    np.testing.assert_array_equal(stream.generation.tokens, expected.tokens)
    np.testing.assert_array_equal(stream.generation.lengths, expected.lengths)
    assert_close(stream.generation.rows.cache, expected.rows.cache)
    for name in ("finished", "last", "consumed", "keys"):
        np.testing.assert_array_equal(getattr(stream.generation.rows, name), getattr(expected.rows, name))
    assert list(stream) == [] and stream.generation is stream.generation


def test_a_chat():
    """A stream goes on from the cache of the one before; the cache that was passed is not consumed."""
    model, cache, heard = toy(), None, []
    for prompt in (ROWS[0], ROWS[1], ROWS[2]):
        stream = ssmkit.stream(model, prompt, 5, cache=cache)
        said = list(stream)
        expected = ssmkit.generate(model, [[*heard, *prompt]], 5)
        assert said == expected.tokens[0].tolist()
        cache, heard = stream.generation.cache, [*heard, *prompt, *said]
    assert list(ssmkit.stream(model, [1], 3, cache=cache)) == list(ssmkit.stream(model, [1], 3, cache=cache))


def test_a_generation_is_streamed_on(case):
    model, arguments = case
    start = ssmkit.generate(model, ROWS, 4, **arguments)
    stream = ssmkit.stream(model, start, 18, arguments["sampler"])
    items, expected = list(stream), ssmkit.resume(model, start, 18, arguments["sampler"])
    assert np.transpose(items).tolist() == expected.tokens.tolist()
    np.testing.assert_array_equal(stream.generation.tokens, expected.tokens)
    for arguments in ({"cache": start.cache}, {"lengths": [1, 1, 1, 1]}):
        with pytest.raises(ValueError, match="`prompts` is a generation, which has its own rows"):
            ssmkit.stream(model, start, **arguments)


def test_batches_of_a_stream_stop_row_by_row():
    items = list(ssmkit.stream(Counting(), [[1], [6], [20]], 7))
    assert [list(column) for column in zip(*items, strict=True)] == [
        [2, 3, 4, 5, None, None, None],
        [7, 8, 9, None, None, None, None],
        [21, 22, 23, 24, 25, 26, 27],
    ]
    assert list(ssmkit.stream(Counting(), [[1]], 2)) == [[2], [3]]


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_stream_that_is_stopped_has_its_generation(taken):
    """With the tokens that were computed, and nothing is lost after them."""
    model, prompt = mamba2(), ROWS[2]
    whole = ssmkit.generate(model, [prompt], 40).tokens[0].tolist()
    stream = ssmkit.stream(model, prompt, 40)
    tokens = [next(stream) for _ in range(taken)]
    stream.stop()
    tokens += stream
    assert tokens == whole[: [0, 1, 17][taken]] and stream.generation.lengths.tolist() == [len(tokens)]
    assert not stream.generation.finished[0]
    more = ssmkit.resume(model, stream.generation, 40 - len(tokens))
    assert tokens + more.tokens[0].tolist() == whole
