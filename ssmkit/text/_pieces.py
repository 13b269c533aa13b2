"""Streaming of text piece by piece. Text that is certain is returned; the rest is held back until it is decided."""

from collections.abc import Callable, Collection, Iterable, Iterator


# Decoders write this in place of bytes that are not, or not yet, a character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoding:
    """A decoder from ids to text, one id after the other. No piece splits a character."""

    def __init__(self, decode: Callable[[list[int]], str], after: list[int]):
        """**Arguments:**

        - `decode`: a function from ids to text.
        - `after`: ids before the first id; their text is not returned.
        """
        self._decode, self._window = decode, list(after)
        self._shown = decode(self._window)
        self._begin = len(after)  # of the window's tokens that are not shown

    def push(self, token: int) -> str:
        """The text that one more id makes certain."""
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
        """The text that was held back, when no id follows."""
        return self._decode(self._window)[len(self._shown) :]


class Before:
    """A filter that ends a text before the first of some stop texts. No part of the stop text is returned."""

    def __init__(self, stops: Collection[str]):
        """**Arguments:** `stops`: texts of at least one character; without any, all text passes unchanged."""
        self._stops, self._held = stops, ""
        self._longest = max(map(len, stops), default=0)
        self.found = False

    def push(self, piece: str) -> str:
        """The text that one more piece makes certain; empty once a stop text was `found`."""
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
        """The text that was held back, when nothing follows."""
        return self._held[: self._first(self._held)]

    def _first(self, text: str) -> int:
        """The index at which the first stop text begins; the length of `text` if none occurs."""
        return min((begin for stop in self._stops if (begin := text.find(stop)) >= 0), default=len(text))


def until(pieces: Iterable[str], stops: Collection[str]) -> Iterator[str]:
    """The pieces of a text before the first occurrence of any stop text. No part of the stop text is yielded.

    A possible beginning of a stop text is held back until the next piece decides. No piece is requested after the stop.

    Law: `"".join(until(pieces, stops))` is `text[: min(text.find(stop) for those stops that occur)]` for
    `text = "".join(pieces)`, however the text is cut in pieces.

    **Arguments:**

    - `pieces`: pieces of text, for example from `Tokenizer.decode_stream`.
    - `stops`: as for `Before`.
    """
    before = Before(stops)
    for piece in pieces:
        if sure := before.push(piece):
            yield sure
        if before.found:
            return
    if rest := before.end():
        yield rest
