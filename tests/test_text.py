"""Text to tokens and back."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tokenizer_kinds
from hypothesis import given, settings, strategies as st
from tokenizer_kinds import CORPUS
from tokenizers import (
    Regex,
    Tokenizer as RawTokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ssmkit.text._files import read_text
from ssmkit.text._pieces import until
from ssmkit.text._tokenizer import Tokenizer


PROMPT = "naïve 😀 text"
BYTE_LEVEL = Tokenizer(tokenizer_kinds.byte_level())
BYTE_FALLBACK = Tokenizer(tokenizer_kinds.byte_fallback())


@given(st.text())
def test_round_trip(text):
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text)) == text


@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1)), st.text())
@settings(max_examples=100)
def test_stream_is_decode(tokens, before):
    """Also where characters are split, bytes are no text at all, and special tokens stand in between."""
    after = BYTE_LEVEL.encode(before)
    pieces = list(BYTE_LEVEL.decode_stream(iter(tokens), after=after))
    assert BYTE_LEVEL.decode(after) + "".join(pieces) == BYTE_LEVEL.decode(after + tokens)
    assert all(pieces)


@given(st.text(), st.text())
def test_stream_never_splits_a_character(before, text):
    """Every piece is whole, although the tokens of a character are not."""
    after, tokens = BYTE_LEVEL.encode(before), BYTE_LEVEL.encode(text)
    pieces = list(BYTE_LEVEL.decode_stream(tokens, after=after))
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" in text or not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@given(st.text("ab ▁é😀"), st.text("ab ▁é😀"))
def test_stream_with_a_decoder_that_drops_the_first_space(before, text):
    after = BYTE_FALLBACK.encode(before)
    tokens = BYTE_FALLBACK.encode(before + text)[len(after) :]
    if BYTE_FALLBACK.encode(before + text)[: len(after)] == after:
        pieces = "".join(BYTE_FALLBACK.decode_stream(tokens, after=after))
        assert BYTE_FALLBACK.decode(after) + pieces == BYTE_FALLBACK.decode(after + tokens)


def test_pieces_come_at_once():
    """A piece is there as soon as its token is."""
    given_so_far = []

    def tokens():
        for token in BYTE_LEVEL.encode("To be, or not"):
            given_so_far.append(token)
            yield token

    for piece in BYTE_LEVEL.decode_stream(tokens()):
        assert BYTE_LEVEL.decode(given_so_far).endswith(piece)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_a_run_of_spaces_costs_no_more_per_space(name, monkeypatch):
    """Few ids are decoded at a time, however long the run."""
    tokenizer, counts = Tokenizer(tokenizer_kinds.RAW[name]()), []
    decode = tokenizer._decode
    monkeypatch.setattr(tokenizer, "_decode", lambda ids: counts.append(len(ids)) or decode(ids))
    tokens = tokenizer.encode("be" + " " * 200 + "be")
    assert "".join(tokenizer.decode_stream(tokens)) == decode(tokens)
    assert len(counts) > 20 and max(counts) < 5


def test_a_space_after_the_prompt_survives():
    after, tokens = BYTE_FALLBACK.encode("b"), BYTE_FALLBACK.encode("b a")[2:]
    assert BYTE_FALLBACK.decode(tokens) == "a"
    assert list(BYTE_FALLBACK.decode_stream(tokens, after=after)) == [" a"]


@given(st.text("ab ▁é😀\n"))
def test_bytes_of_tokens_add_up(text):
    """To the text's own; with the space that some tokenizers put before the first word."""
    assert sum(map(BYTE_LEVEL.byte_length, BYTE_LEVEL.encode(text))) == len(text.encode())
    text = text.replace("▁", "")  # a space to this tokenizer
    added = bool(text) and not text.startswith(" ")
    assert sum(map(BYTE_FALLBACK.byte_length, BYTE_FALLBACK.encode(text))) == len(text.encode()) + added


@pytest.mark.parametrize("name", ["unigram", "word_piece", "word_level"])
def test_bytes_of_words_have_their_spaces(name):
    tokenizer = Tokenizer(tokenizer_kinds.RAW[name]())
    text = "To be or not to be" if name != "word_level" else "to be or not to be"
    tokens = tokenizer.encode(text, special=False)
    lengths = list(map(tokenizer.byte_length, tokens))
    assert sum(lengths) == len(" " + text)
    assert len(tokens) > 5 and tokenizer.decode(tokens) == text
    for end in range(1, len(tokens)):
        assert sum(lengths[:end]) == len(" " + tokenizer.decode(tokens[:end]))


@given(st.lists(st.text("abc", max_size=4)), st.lists(st.text("abc", min_size=1, max_size=5), max_size=3))
def test_a_text_ends_before_the_first_stop_text(pieces, stops):
    """However it is cut, and where one of them begins inside another."""
    text = "".join(pieces)
    end = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    given = list(until(iter(pieces), stops))
    assert "".join(given) == text[:end] and all(given)


def test_stop_texts_hold_back_only_what_may_be_theirs():
    asked = []

    def pieces():
        for piece in ("ab", "c", "n", "no", "!", "rest"):
            asked.append(piece)
            yield piece

    given = [(piece, len(asked)) for piece in until(pieces(), ["no!", "never"])]
    assert given == [("ab", 1), ("c", 2), ("n", 4)]
    assert asked == ["ab", "c", "n", "no", "!"]


def test_special_tokens_are_left_out():
    end = BYTE_LEVEL.token_id("<|endoftext|>")
    assert end is not None and BYTE_LEVEL.token_id("no such token") is None
    tokens = [*BYTE_LEVEL.encode("To"), end, *BYTE_LEVEL.encode(" be")]
    assert BYTE_LEVEL.decode(tokens) == "".join(BYTE_LEVEL.decode_stream(tokens)) == "To be"
    assert BYTE_LEVEL.byte_length(end) == len("<|endoftext|>")


# Special tokens


def test_special_tokens_of_the_post_processor_are_there():
    """Unless they are not wanted; those that a text spells out always are."""
    for name, begin, end in (("with_begin", [1], []), ("word_piece", [1], [2]), ("unigram", [], [1])):
        raw = tokenizer_kinds.RAW[name]()
        tokenizer, bare = Tokenizer(raw), raw.encode("a be", add_special_tokens=False).ids
        assert tokenizer.encode("a be") == [*begin, *bare, *end]
        assert tokenizer.encode("a be", special=False) == bare
        assert tokenizer.decode(tokenizer.encode("a be")) == tokenizer.decode(bare)
    assert Tokenizer(tokenizer_kinds.with_begin()).encode("<s>a", special=False)[0] == 1
    assert BYTE_LEVEL.encode("a be") == BYTE_LEVEL.encode("a be", special=False)


# Mistakes


def test_what_is_no_text():
    for text, problem in ((b"a", "`text` must be a string"), ("a\ud800", "stands at 1"), (None, "must be a string")):
        with pytest.raises(ValueError, match=problem):
            BYTE_LEVEL.encode(text)
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode("a\0b")) == "a\0b"


@pytest.mark.parametrize("tokens", [[-1], [2**32], [10**30], [1.5], ["a"], [None], np.array([0.5])])
def test_what_are_no_ids(tokens):
    for call in (
        BYTE_LEVEL.decode,
        lambda ids: list(BYTE_LEVEL.decode_stream(ids)),
        lambda ids: BYTE_LEVEL.byte_length(ids[0]),
    ):
        with pytest.raises(ValueError, match="`tokens` must be token ids"):
            call(tokens)


def test_ids_that_the_tokenizer_does_not_have_are_no_text():
    """A model's vocabulary may be padded."""
    assert BYTE_LEVEL.decode([*BYTE_LEVEL.encode("a"), BYTE_LEVEL.vocab_size, 2**32 - 1]) == "a"
    assert BYTE_LEVEL.byte_length(2**32 - 1) == 0


def many(step: object, steps: str, count: int = 60) -> dict:
    """The same step many times over."""
    return {"type": "Sequence", steps: count * [json.loads(step.__getstate__())]}


UNKNOWN = {"type": "WordLevel", "vocab": {"h": 0}, "unk_token": "<unk>"}
LONG_PREFIX = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "continuing_subword_prefix": "###"}
BROKEN = {
    "unknown words": {"model": UNKNOWN},
    "panic while reading": {"model": LONG_PREFIX},
    "panic with any text": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "depth": {"normalizer": json.loads('{"type":"Sequence","normalizers":[' * 150 + "]}" * 150)},
    "growth": {"normalizer": many(normalizers.Replace("e", "ee"), "normalizers")},
    "growth of a pattern": {"normalizer": many(normalizers.Replace(Regex("x*"), "yy"), "normalizers")},
    "growth at the beginning": {"normalizer": many(normalizers.Prepend("aa"), "normalizers")},
    "growth of bytes": {"pre_tokenizer": many(pre_tokenizers.ByteLevel(), "pretokenizers")},
    "growth by templates": {"post_processor": many(processors.TemplateProcessing(single="$A $A"), "processors")},
    "growth by special tokens": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "?", "type_id": 0}}] * 20_000,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"?": {"id": "?", "ids": [0] * 20_000, "tokens": ["?"] * 20_000}},
        }
    },
    "growth by decoding": {"decoder": many(decoders.Replace("?", "??"), "decoders")},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_is_one_error(name, tmp_path, capfd):
    """Also where its library panics, with an exception that is no `Exception`, or would fill the memory."""
    words = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(words | BROKEN[name]))
    with pytest.raises(ValueError) as error:
        Tokenizer.from_file(path).encode("hello")
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
    assert name == "unknown words" or str(path) in str(error.value)


def test_interrupts_pass():
    def texts():
        yield "a"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tokenizer.train(texts(), 300)


# Training


def test_a_text_without_spaces_is_trained_on_in_pieces():
    """The trainer would take 38 s for this one, whose first pair occurs 300,000 times in a single word."""
    tokenizer = Tokenizer.train(["a" * 300_000, "to be or not to be"], 400)
    assert tokenizer.vocab_size < 300  # 2, 4, ... 256 letters and the words
    assert max(map(tokenizer.byte_length, range(tokenizer.vocab_size))) == 256
    assert len(tokenizer.encode("a" * 300_000)) < 300_000 / 250
    assert json.loads(tokenizer._raw.to_str())["pre_tokenizer"]["type"] == "ByteLevel"


def test_words_are_trained_on_as_ever():
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    assert Tokenizer.train(CORPUS.splitlines(keepends=True), 400)._raw.get_vocab() == raw.get_vocab()


@pytest.mark.parametrize("size", [255, 0, -1, 2**70, 1_000_001])
def test_sizes_of_vocabularies(size):
    with pytest.raises(ValueError, match="at least 256 .* and at most 1,000,000, got"):
        Tokenizer.train([CORPUS], size)


def test_read_text(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("a\r\nb\rç\n".encode())
    assert read_text(path) == "a\r\nb\rç\n"
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_text(path)


def test_a_text_out_of_a_pipe(tmp_path):
    """As a shell's process substitution gives one; a device would never end."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"two\r\nlines\n",))
    writer.start()
    assert read_text(tmp_path / "pipe") == "two\r\nlines\n"
    writer.join()
    with pytest.raises(OSError, match="Not a regular file: '/dev/zero'"):
        read_text(Path("/dev/zero"))
