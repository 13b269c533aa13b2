"""Text to tokens and back."""

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer as RawTokenizer, decoders, models, pre_tokenizers

from ssmkit._text import Tokenizer, read_text, until


CORPUS = "To be, or not to be: that is the question.\nÊtre ou ne pas être ça\n日本語 😀😃 naïve\n" * 20
PROMPT = "naïve 😀 text"


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer.train(CORPUS.splitlines(keepends=True), 400)
    tokenizer._raw.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As the tokenizers converted from sentencepiece: a space is `▁`, and decoding drops the one at the beginning."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij", "▁a"]
    raw = RawTokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(steps)
    return Tokenizer(raw)


BYTE_LEVEL = byte_level()
BYTE_FALLBACK = byte_fallback()


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


def test_a_space_after_the_prompt_survives():
    after, tokens = BYTE_FALLBACK.encode("b"), BYTE_FALLBACK.encode("b a")[2:]
    assert BYTE_FALLBACK.decode(tokens) == "a"
    assert list(BYTE_FALLBACK.decode_stream(tokens, after=after)) == [" a"]


@given(st.text(min_size=1))
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte level", "byte fallback"])
def test_bytes_of_tokens_add_up(tokenizer, text):
    if tokenizer is BYTE_FALLBACK:
        text = "b" + text.replace(" ", "").replace("▁", "")  # what its decoder does not change, in pieces either
        tokens = tokenizer.encode(text)[1:]
    else:
        tokens = tokenizer.encode(text)
    assert sum(map(tokenizer.byte_length, tokens)) == len(text.encode())


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


def test_files(tmp_path):
    path = tmp_path / "tokenizer.json"
    BYTE_LEVEL.save(path)
    for source in (path, tmp_path):
        assert Tokenizer.from_file(source).encode(PROMPT) == BYTE_LEVEL.encode(PROMPT)


def test_truncation_and_padding_of_a_file_are_left_out(tmp_path):
    raw = RawTokenizer.from_str(BYTE_LEVEL._raw.to_str())
    raw.enable_truncation(2)
    raw.enable_padding(length=50)
    raw.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_file(tmp_path).encode(PROMPT) == BYTE_LEVEL.encode(PROMPT)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer.json"):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(ValueError, match="at least 256"):
        Tokenizer.train([CORPUS], 255)


def test_read_text(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("a\r\nb\rç\n".encode())
    assert read_text(path) == "a\r\nb\rç\n"
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_text(path)
