"""Values and texts from outside as messages show them: on one line, and shortened."""

import re
import reprlib
from typing import Any


_VALUE = 120  # characters of a value

_UNUSUAL = re.compile(r"[^ -~\n]")


def readable(text: str, most: int = _VALUE) -> str:
    """Shorten a text of a file for a message.

    **Arguments:**

    - `text`: any text.
    - `most`: the largest number of characters.

    **Returns:** at most `most` characters, with the middle left out. No character controls the terminal.
    """
    return _cut(_UNUSUAL.sub(_escaped, _cut(text, most)), most)


def one_line(text: str, most: int = _VALUE) -> str:
    """As `readable`, with line breaks escaped too."""
    return _cut(readable(text, most).replace("\n", r"\n"), most)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    return str(error).partition("\n")[0]


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else found[0].encode("unicode_escape").decode()


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - most // 4 - 5]} ... {text[-(most // 4) :]}"


class _Shown(reprlib.Repr):
    """A `repr` that reads no more of a value than it shows."""

    def __init__(self):
        """Set limits that ordinary values of a configuration do not reach."""
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, _VALUE, _VALUE
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_int(self, x: int, level: int) -> str:
        """Shorten long integers: Python refuses to write more than 4300 digits, and is slow for long integers."""
        return repr(x) if x.bit_length() < 200 else f"an integer of {x.bit_length()} bits"


_SHOWN = _Shown()


def shown(value: Any) -> str:
    """Write a value for a message: its `repr`, shortened if it is long or deep.

    **Arguments:**

    - `value`: anything.

    **Returns:** a line of at most 120 characters.
    """
    text = _SHOWN.repr(value)
    return _cut(" ".join(text.split()) if "\n" in text else text, _VALUE)
