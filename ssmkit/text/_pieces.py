"""A text as it comes, piece by piece: what is sure is given, the rest is held back until more decides."""

from collections.abc import Callable, Collection, Iterable, Iterator


# Decoders write this in place of bytes that are not, or not yet, a character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoding:
    """Ids to text, one after the other. No piece splits a character."""

    def __init__(self, decode: Callable[[list[int]], str], after: list[int]):
        """**Arguments:**

        - `decode`: the text of ids.
        - `after`: ids before the first, whose text is not given.
        """
        self._decode, self._window = decode, list(after)
        self._shown = decode(self._window)
        self._begin = len(after)  # of the window's tokens that are not shown

    def push(self, token: int) -> str:
        """What one more id makes sure of."""
        self._window.append(token)
        text = self._decode(self._window)
        # A replacement at the end may be the first bytes of a character whose last bytes are still to come.
        if len(text) <= len(self._shown) or text.endswith(REPLACEMENT):
            return ""
        piece = text[len(self._shown) :]
        # Its tokens suffice as context, unless they are spaces that vanish at the beginning of a text.
        alone = self._decode(self._window[self._begin :])
        if alone == piece or alone.strip():
            self._window, self._shown = self._window[self._begin :], alone
        else:
            del self._window[self._begin :]
        self._begin = len(self._window)
        return piece

    def end(self) -> str:
        """What was held back, when no id follows."""
        return self._decode(self._window)[len(self._shown) :]


class Before:
    """A text up to where the first of some texts begins. No part of that text is given."""

    def __init__(self, stops: Collection[str]):
        """**Arguments:** `stops`: texts of at least one character; without any, all passes as it is."""
        self._stops, self._held = stops, ""
        self._longest = max(map(len, stops), default=0)
        self.found = False

    def push(self, piece: str) -> str:
        """What one more piece makes sure of; nothing once one of the texts was `found`."""
        if self.found:
            return ""
        held = self._held + piece
        found, undecided = self._first(held), len(held)
        for begin in range(max(0, len(held) - self._longest + 1), len(held)):
            if any(stop != held[begin:] and stop.startswith(held[begin:]) for stop in self._stops):
                undecided = begin  # what follows decides whether one of them begins here
                break
        safe = min(found, undecided)
        self.found = found <= undecided and found < len(held)
        self._held = "" if self.found else held[safe:]
        return held[:safe]

    def end(self) -> str:
        """What was held back, when nothing follows."""
        return self._held[: self._first(self._held)]

    def _first(self, text: str) -> int:
        """Where the first of the texts begins; the length of `text` if none does."""
        return min((begin for stop in self._stops if (begin := text.find(stop)) >= 0), default=len(text))


def until(pieces: Iterable[str], stops: Collection[str]) -> Iterator[str]:
    """The pieces of a text up to where the first of some texts begins. No part of that text is given.

    What may be its beginning is held back until the next piece decides. Nothing is asked for after it.

    Law: `"".join(until(pieces, stops))` is `text[: min(text.find(stop) for those stops that occur)]` for
    `text = "".join(pieces)`, however the text is cut in pieces.

    **Arguments:**

    - `pieces`: as from `Tokenizer.decode_stream`.
    - `stops`: as of `Before`.
    """
    before = Before(stops)
    for piece in pieces:
        if sure := before.push(piece):
            yield sure
        if before.found:
            return
    if rest := before.end():
        yield rest
