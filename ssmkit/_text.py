"""Text to token ids and back, through a `tokenizer.json`."""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer

# What decoders write in place of bytes that are not, or not yet, a character.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A `tokenizer.json` in the format of the `tokenizers` library. Nothing is added to a text but what it says."""

    def __init__(self, raw: "RawTokenizer"):
        """**Arguments:** `raw`: a `tokenizers.Tokenizer`."""
        self._raw = raw

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a `tokenizer.json`, or the one in a directory. Truncation and padding that it asks for are left out.

        **Raises:** `FileNotFoundError` when there is none, `ValueError` when it cannot be understood.
        """
        from tokenizers import Tokenizer as RawTokenizer

        if os.path.isdir(path):
            path = os.path.join(path, "tokenizer.json")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no tokenizer at {path}: put the model's tokenizer.json there")
        try:
            raw = RawTokenizer.from_file(os.fspath(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer.json of the tokenizers library: {error}") from None
        raw.no_truncation()
        raw.no_padding()
        return cls(raw)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A byte-level BPE tokenizer: every text can be encoded, and decoding gives it back exactly.

        **Arguments:**

        - `texts`: the training text.
        - `vocab_size`: at least 256, the bytes themselves; fewer ids are made when the text has too few pairs.
        """
        from tokenizers import Tokenizer as RawTokenizer, decoders, models, pre_tokenizers, trainers

        if vocab_size < 256:
            raise ValueError(f"`vocab_size` must be at least 256 (the bytes themselves), got {vocab_size}.")
        raw = RawTokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        raw.train_from_iterator(texts, trainer)
        return cls(raw)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._raw.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens but those that the text itself spells out."""
        return self._raw.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._raw.decode([int(token) for token in tokens])

    def decode_stream(self, tokens: Iterable[int], *, after: Iterable[int] = ()) -> Iterator[str]:
        """The text of ids as they come, in pieces that never split a character.

        Law: `decode(after) + "".join(decode_stream(tokens, after=after)) == decode(after + tokens)`, where `after` ends
        with a whole character, and for every tokenizer whose decoder never takes back what it wrote (as all byte-level
        ones).

        **Arguments:**

        - `tokens`: the ids.
        - `after`: ids before the first of them, such as a prompt's: some decoders drop the space that a text begins
            with.
        """
        window = [int(token) for token in after]
        shown = self.decode(window)
        begin = len(window)  # of the window's tokens that are not shown
        for token in tokens:
            window.append(int(token))
            text = self.decode(window)
            # A replacement at the end may be the first bytes of a character whose last are still to come.
            if len(text) > len(shown) and not text.endswith(_REPLACEMENT):
                yield text[len(shown) :]
                window = window[begin:]
                shown, begin = self.decode(window), len(window)
        rest = self.decode(window)[len(shown) :]
        if rest:
            yield rest

    def byte_length(self, token: int) -> int:
        """Bytes of UTF-8 that one id stands for, also where these are only a part of a character."""
        text = self._raw.decode([token], skip_special_tokens=False)
        if _REPLACEMENT not in text:
            return len(text.encode())
        piece = self._raw.id_to_token(token) or ""
        # One byte is one letter of a byte-level vocabulary, or one entry such as `<0xE2>` of the others.
        return 1 if re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece) else len(piece)

    def token_id(self, token: str) -> int | None:
        """The id of a token written as in the vocabulary, such as `<|endoftext|>`; `None` if there is none."""
        return self._raw.token_to_id(token)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `tokenizer.json`."""
        self._raw.save(os.fspath(path))


def until(pieces: Iterable[str], stops: Collection[str]) -> Iterator[str]:
    """The pieces of a text up to where the first of some texts begins. No part of that text is given.

    What may be its beginning is held back until the next piece decides. Nothing is asked for after it.

    Law: `"".join(until(pieces, stops))` is `text[: min(text.find(stop) for those stops that occur)]` for
    `text = "".join(pieces)`, however the text is cut in pieces.

    **Arguments:**

    - `pieces`: as from `Tokenizer.decode_stream`.
    - `stops`: texts of at least one character; without any, all pieces pass as they are.
    """
    longest = max(map(len, stops), default=0)
    held = ""
    for piece in pieces:
        held += piece
        found, undecided = _first(held, stops), len(held)
        for begin in range(max(0, len(held) - longest + 1), len(held)):
            if any(stop != held[begin:] and stop.startswith(held[begin:]) for stop in stops):
                undecided = begin  # what follows decides whether one of them begins here
                break
        safe = min(found, undecided)
        if safe:
            yield held[:safe]
        if found <= undecided and found < len(held):
            return
        held = held[safe:]
    rest = held[: _first(held, stops)]
    if rest:
        yield rest


def _first(text: str, parts: Collection[str]) -> int:
    """Where the first of some parts begins in a text; its length if there is none."""
    return min((begin for part in parts if (begin := text.find(part)) >= 0), default=len(text))


def read_text(path: Path) -> str:
    """A UTF-8 file exactly as it is, its line endings included.

    **Raises:** `ValueError` when it is not UTF-8, `OSError` when it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
