"""Texts in place of ids: prompts, results, streams, and stop texts of any number of tokens."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from command_line import TEXT
from generating import toy

import ssmkit
from ssmkit.generation import _task
from ssmkit.models import ToySSM


pytestmark = pytest.mark.usefixtures("quick_compilation")

PROMPTS, LIMITS = ["To be", "Être"], [40, 21]
KEY = jax.random.key(3)
SAMPLER = ssmkit.Sampler(2.0)


@functools.cache
def tokenizer() -> ssmkit.Tokenizer:
    return ssmkit.Tokenizer.train([TEXT] * 20, 290)


@functools.cache
def model() -> ToySSM:
    return ToySSM(tokenizer().vocab_size, width=8, layers=1, heads=2, key=jax.random.key(1))


@functools.cache
def free() -> ssmkit.TextGeneration:
    return ssmkit.generate(model(), PROMPTS, LIMITS, SAMPLER, key=KEY, tokenizer=tokenizer())


def generated(stop_text=None, **changes):
    arguments = {"sampler": SAMPLER, "key": KEY, "tokenizer": tokenizer(), "stop_text": stop_text}
    return ssmkit.generate(model(), PROMPTS, LIMITS, **(arguments | changes))


def said(i: int, count: int) -> str:
    """The text of the first tokens of a row."""
    ids = free().generation.tokens[i, :count].tolist()
    return tokenizer().decode([*tokenizer().encode(PROMPTS[i]), *ids]).removeprefix(PROMPTS[i])


def test_texts_are_prompts_and_results():
    out, ids = free(), [tokenizer().encode(text) for text in PROMPTS]
    plain = ssmkit.generate(model(), ids, LIMITS, SAMPLER, key=KEY)
    np.testing.assert_array_equal(out.generation.tokens, plain.tokens)
    for prompt, text, row, length in zip(ids, out.texts, plain.tokens.tolist(), LIMITS, strict=True):
        assert tokenizer().decode(prompt) + text == tokenizer().decode([*prompt, *row[:length]])
    mixed = ssmkit.generate(model(), [PROMPTS[0], ids[1]], LIMITS, SAMPLER, key=KEY, tokenizer=tokenizer())
    assert mixed.texts == out.texts
    alone = ssmkit.generate(model(), PROMPTS[0], LIMITS[0], SAMPLER, key=KEY, tokenizer=tokenizer())
    assert alone.texts == out.texts[:1]


def test_a_stop_token_is_no_part_of_the_text():
    ids = free().generation.tokens[0].tolist()
    first = ids.index(ids[7])
    out = generated(stop_token=ids[7])
    assert int(out.generation.lengths[0]) == first + 1
    assert tokenizer().decode([*tokenizer().encode(PROMPTS[0]), *ids[:first]]) == PROMPTS[0] + out.texts[0]


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=8)
def test_stop_texts(draw):
    """The text ends before the first of them; ids, cache and random state are those after the token that completes it.

    As a stream, whose turns end elsewhere, and which never writes a part of a stop text.
    """
    stops = []
    for text in free().texts:
        begin = draw.draw(st.integers(0, len(text) - 1))
        stops.append([text[begin : begin + draw.draw(st.integers(1, 5))], "never seen"])
    out = generated(stops)
    rows = free().generation.tokens.tolist()
    for i, (text, whole, own) in enumerate(zip(out.texts, free().texts, stops, strict=True)):
        assert text == whole[: whole.index(own[0])]
        length = int(out.generation.lengths[i])
        assert out.generation.tokens[i].tolist()[:length] == rows[i][:length]
        assert own[0] in said(i, length) and own[0] not in said(i, length - 1).rstrip("\N{REPLACEMENT CHARACTER}")
    assert bool(out.generation.finished.all())
    exact = ssmkit.generate(model(), PROMPTS, out.generation.lengths.tolist(), SAMPLER, key=KEY, tokenizer=tokenizer())
    for name in ("cache", "logits", "keys", "last", "consumed"):
        got, expected = (getattr(g.generation.rows, name) for g in (out, exact))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)
    stream = ssmkit.stream(model(), PROMPTS, LIMITS, SAMPLER, key=KEY, tokenizer=tokenizer(), stop_text=stops)
    texts, items = ["", ""], list(stream)
    for pieces in items:
        texts = [text + (piece or "") for text, piece in zip(texts, pieces, strict=True)]
        assert all(text == end[: len(text)] for text, end in zip(texts, out.texts, strict=True))
    assert texts == out.texts
    assert [sum(piece is not None for piece in c) for c in zip(*items, strict=True)] == out.generation.lengths.tolist()
    np.testing.assert_array_equal(stream.generation.tokens[:, : len(items)], out.generation.tokens[:, : len(items)])


def test_one_text_is_streamed_in_pieces():
    stream = ssmkit.stream(model(), PROMPTS[0], LIMITS[0], SAMPLER, key=KEY, tokenizer=tokenizer())
    pieces = list(stream)
    assert "".join(pieces) == free().texts[0] and all(pieces) and len(pieces) > 5
    assert int(stream.generation.lengths[0]) == LIMITS[0]


def test_what_is_not_looked_for_is_not_run_again(monkeypatch):
    """A turn is repeated only where a stop text was found within it."""
    asked, proceed = [], _task.proceed

    def spy(inputs, *rest):
        asked.append(inputs.request.limits.tolist())
        return proceed(inputs, *rest)

    monkeypatch.setattr(_task, "proceed", spy)
    generated("never seen")
    assert asked == [LIMITS]
    asked.clear()
    generated([free().texts[0][3:5], None])
    assert asked[0] == LIMITS and asked[1][0] < LIMITS[0] and asked[1][1] == LIMITS[1] and len(asked) == 2


def test_what_surrounds_a_text_is_left_out_after_a_cache():
    """A beginning of text belongs where the text begins."""
    from tokenizers.processors import TemplateProcessing

    surrounded = ssmkit.Tokenizer.train([TEXT], 280)
    surrounded._raw.post_processor = TemplateProcessing(single="To $A", special_tokens=[("To", 65)])
    assert surrounded.encode("be")[0] == 65
    start = ssmkit.generate(model(), "be", 1, tokenizer=surrounded)
    assert int(start.generation.rows.consumed[0]) == 1 + len(surrounded.encode("be"))
    more = ssmkit.generate(model(), "be", 1, tokenizer=surrounded, cache=start.generation.cache)
    assert int(more.generation.rows.consumed[0]) == len(surrounded.encode("be"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None, "stop_text": "x"}, "`stop_text` needs the tokenizer that decodes: pass `tokenizer=`"),
        ({"tokenizer": "gpt2"}, "`tokenizer` must be an `ssmkit.Tokenizer`, got 'gpt2'"),
        ({"stop_text": ""}, "`stop_text` must have texts of at least one character, got ''"),
        ({"stop_text": [5]}, "`stop_text` must be texts for all prompts, or one entry per prompt, 2, got 1 entries"),
        ({"stop_text": ["a", 5]}, "`stop_text` must have texts of at least one character, got 5"),
        ({"stop_text": 5}, "`stop_text` must have texts of at least one character, got 5"),
        ({"stop_text": [["a"], None, []]}, "`stop_text` must be .* one entry per prompt, 2, got 3 entries"),
        ({"log_probs": -1}, r"`log_probs` must be an integer in \[0, 29\], or `None`, got -1"),
        ({"log_probs": True}, "`log_probs` must be an integer in .*, got True"),
        ({"log_probs": 30}, "`log_probs` must be an integer in .*, got 30"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        ssmkit.generate(toy(), [[1], [2]], 2, **({"tokenizer": tokenizer()} | changes))
