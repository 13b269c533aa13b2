"""A chat: every answer is that to the whole conversation, and only what is new is consumed."""

from typing import Any, cast

import jax
import numpy as np
import pytest
from test_hybrid_engine import VOCAB, model
from tokenizers import Regex, Tokenizer as RawTokenizer, decoders, models, pre_tokenizers

import ssmkit
from ssmkit.generation._chat import _State
from ssmkit.text._chat import ChatFormat


# `j` is a letter that the model writes often.
PLAIN = """{% for m in messages %}{{ '<u>' if m.role == 'user' else '<a>' }}{{ m.content }}j{% endfor %}
{%- if add_generation_prompt %}<a>{% endif %}"""
# Answers lose their first half once they are earlier answers, as they lose thoughts.
REWRITING = """{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}j{% else -%}
<a>{{ m.content[(m.content | length) // 2 :] }}j{% endif %}{% endfor %}
{%- if add_generation_prompt %}<a>{% endif %}"""
# An answer is opened by a letter that is not written before earlier answers, as `<think>` is not.
THINKING = PLAIN.replace("<a>{% endif %}", "<a>v{% endif %}")
HEADED = """{% for m in messages %}{{ m.role[0] }}:{{ m.content }}

{% endfor %}{% if add_generation_prompt %}a:{% endif %}"""
TURNS = ["hello", "abc def", "so be it", "a"]
GREEDY = ssmkit.Greedy()
PENALTY = ssmkit.Sampler(top_k=1, repetition_penalty=1.5)


def tokenizer(template, merges=()):
    """One id for every letter, and for some of the pairs too."""
    pieces = [*"abcdefghijklmnopqrstu \n:", *map("".join, merges)]
    raw = RawTokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [*merges]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Split(Regex("[^x]+"), "isolated"), decoders.Fuse()
    raw.add_special_tokens(["<u>", "<a>"])
    raw.add_tokens(["vwxyz"[i] for i in range(VOCAB - raw.get_vocab_size())])
    return ssmkit.Tokenizer(raw).with_chat_template(template)


def prompts_and_answers(chat, turns=TURNS):
    """The ids of every turn's prompt and answer, as the model has consumed them."""
    for turn in turns:
        before = list(chat.messages)
        pieces = "".join(chat.send(turn))
        assert chat.messages[:-1] == [*before, {"role": "user", "content": turn}]
        assert pieces.rstrip() == chat.messages[-1]["content"].rstrip()
        count = chat.turn.reused + chat.turn.prefilled
        yield chat.ids[:count], chat.ids[count:]
        assert len(chat.ids) == count + chat.turn.generated


def from_the_beginning(ids, count, sampler=GREEDY):
    (tokens,) = np.asarray(ssmkit.generate(model(), [ids], 8, sampler, stop_token=(), key=jax.random.key(5)).tokens)
    return tokens[:count].tolist()


@pytest.mark.parametrize("sampler", [GREEDY, PENALTY])
@pytest.mark.parametrize("template, stop", [(PLAIN, 9), (PLAIN, ()), (REWRITING, 9), (REWRITING, ()), (HEADED, 9)])
def test_every_answer_is_that_to_the_whole_conversation(template, stop, sampler):
    """Also if the answer has no end, if its template changes it later, and if it has tokens that have no text."""
    words = tokenizer(template)
    chat = ssmkit.Chat(model(), words, max_new_tokens=8, sampler=sampler, stop_token=stop, key=jax.random.key(3))
    for turn in TURNS:
        whole = words.encode_chat([*chat.messages, {"role": "user", "content": turn}])
        ((prompt, answer),) = prompts_and_answers(chat, [turn])
        assert prompt == whole
        assert answer == from_the_beginning(prompt, len(answer), sampler)
    assert chat.total.restarts == 0


def test_a_turn_consumes_what_is_new():
    chat = ssmkit.Chat(model(), tokenizer(PLAIN), max_new_tokens=8, stop_token=9)
    reused = [0]
    for prompt, answer in prompts_and_answers(chat):
        assert chat.turn == (len(prompt) - reused[-1], reused[-1], len(answer), 0)
        reused.append(len(prompt) + len(answer))
    total = sum(reused[1:-1])
    assert chat.total == (reused[-1] - chat.total.generated, total, chat.total.generated, 0)
    assert chat.cache_bytes > 0 and chat.generation is not None


def test_an_answer_that_changes_later_is_consumed_again_but_not_its_prompt():
    chat = ssmkit.Chat(model(), tokenizer(REWRITING), max_new_tokens=8, stop_token=9)
    (first, answer), *_ = prompts_and_answers(chat, TURNS[:2])
    assert len(answer) > 2 and chat.turn.reused == len(first)


def test_words_that_open_an_answer_and_are_not_repeated():
    """The second turn cannot know of them. From then on no turn consumes a message twice, but for answers."""
    words = tokenizer(THINKING)
    chat = ssmkit.Chat(model(), words, max_new_tokens=8, stop_token=9)
    reused, before = [], []
    for turn in TURNS:
        said = [*chat.messages, {"role": "user", "content": turn}]
        before.append(len(words.encode_chat(said, add_generation_prompt=False)))
        ((prompt, answer),) = prompts_and_answers(chat, [turn])
        assert prompt == words.encode_chat(said) and answer == from_the_beginning(prompt, len(answer))
        assert chat.turn.reused + chat.turn.prefilled == len(prompt)
        reused.append(chat.turn.reused)
    assert reused == [0, 0, before[1], before[2]] and chat.total.restarts == 1


def test_tokens_that_the_tokenizer_would_not_choose():
    """The answer is kept as the model wrote it: its text is the same."""
    words = tokenizer(HEADED, merges=[("p", "p"), ("a", ":")])
    chat = ssmkit.Chat(model(), words, max_new_tokens=6, stop_token=())
    (first, answer), (second, last) = prompts_and_answers(chat, ["ab", "cd"])
    assert words.encode(words.written(answer), special=False) != answer
    assert second[: len(first + answer)] == first + answer and chat.total.restarts == 0
    assert words.written(second) == words.apply_chat_template(chat.messages[:-1])
    assert last == from_the_beginning(second, 6)


@pytest.mark.parametrize("rest", ["\n\nu:cd", "u:cd", "\nu", ":", "a"])
def test_what_follows_is_encoded_as_inside_of_the_text(rest):
    """Two line breaks are one token here: what follows an answer must not be encoded behind a third."""
    words = tokenizer(HEADED, merges=[("\n", "\n"), ("p", "p")])
    text, ids = "a:ppp", words.encode("a:p") * 3
    state = _State(text, ids, cast(Any, None))
    assert ssmkit.Chat(model(), words)._following(state, text + rest) == words.encode(rest)


def test_a_stop_text_belongs_to_the_next_turn():
    """Where no special token ends an answer: white space before it is not a part of the message."""
    words = tokenizer(HEADED)
    chat = ssmkit.Chat(model(), words, max_new_tokens=8, stop_text="p:d")
    ((_, answer),) = prompts_and_answers(chat, TURNS[:1])
    assert words.written(answer) == "dppp:d" and chat.messages[-1]["content"] == "dpp"


def test_messages_that_were_changed_are_consumed_from_the_beginning():
    words = tokenizer(PLAIN)
    chat = ssmkit.Chat(model(), words, max_new_tokens=8, stop_token=9, messages=[{"role": "user", "content": "b"}])
    assert len(list(prompts_and_answers(chat, TURNS[:2]))) == 2
    chat.messages[0] = {"role": "user", "content": "c"}
    ((prompt, answer),) = prompts_and_answers(chat, TURNS[2:3])
    assert chat.turn == (len(prompt), 0, len(answer), 1) and chat.total.restarts == 1
    assert prompt == words.encode_chat(chat.messages[:-1]) and answer == from_the_beginning(prompt, len(answer))


def test_a_stream_that_is_left_leaves_no_trace():
    chat, other = (ssmkit.Chat(model(), tokenizer(PLAIN), max_new_tokens=8, stop_token=()) for _ in range(2))
    for turn in ("hello", "abc"):
        next(chat.send("never mind"))
        assert [*chat.send(turn)] == [*other.send(turn)]
    assert (chat.messages, chat.total, chat.ids) == (other.messages, other.total, other.ids)


def test_an_answer_that_is_stopped_ends_there():
    """With the text that was held back, which may have become a stop text."""
    words = tokenizer(HEADED)
    chat = ssmkit.Chat(model(), words, max_new_tokens=40, stop_text="d?")
    stream = chat.send(TURNS[0])
    stream.stop()
    assert list(stream) == ["d"] == [chat.messages[-1]["content"]] and chat.turn.generated == 1
    (prompt, answer), *_ = prompts_and_answers(chat, TURNS[1:2])
    assert prompt == words.encode_chat(chat.messages[:-1]) and chat.total.restarts == 0
    assert answer[:8] == from_the_beginning(prompt, 8)


def test_the_end_of_a_text_ends_an_answer():
    words = ssmkit.Tokenizer(tokenizer(PLAIN)._raw, ChatFormat({"default": PLAIN}, {"eos_token": "w"}))
    assert ssmkit.chat_stop_tokens(model(), words) == [words.token_id("w")]
    ((_, answer),) = prompts_and_answers(ssmkit.Chat(model(), words, max_new_tokens=8), TURNS[:1])
    assert answer == [words.token_id("w")]


@pytest.mark.parametrize(
    "mistake, message",
    [
        (lambda words: ssmkit.Chat(model(), ssmkit.Tokenizer(words._raw)), "`tokenizer` .* with a chat template"),
        (lambda words: ssmkit.Chat(model(), None), "`tokenizer` .* got None"),
        (lambda words: ssmkit.Chat(model(), words).send(3), "`content` must be a text, got 3"),
        (lambda words: ssmkit.Chat(model(), words, max_new_tokens=-1).send("a"), "`max_new_tokens`"),
        (lambda words: ssmkit.Chat(model(), words, messages=[{"content": "a"}]).send("a"), r"`messages\[0\]`"),
    ],
)
def test_mistakes(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake(tokenizer(PLAIN))
