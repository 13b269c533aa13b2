"""How values and texts that somebody else wrote stand in a message: on one line, and never at their full length."""

import re
import reprlib
from typing import Any


_VALUE = 120  # characters of a value

_UNUSUAL = re.compile(r"[^ -~\n]")


def readable(text: str, most: int = _VALUE) -> str:
    """A text of a file as it stands in a message.

    **Arguments:**

    - `text`: anything.
    - `most`: characters.

    **Returns:** at most so many characters, the middle left out, and none that a terminal would act on.
    """
    return _cut(_UNUSUAL.sub(_escaped, _cut(text, most)), most)


def one_line(text: str, most: int = _VALUE) -> str:
    """As `readable`, with the ends of lines escaped too."""
    return _cut(readable(text, most).replace("\n", r"\n"), most)


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else found[0].encode("unicode_escape").decode()


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - most // 4 - 5]} ... {text[-(most // 4) :]}"


class _Shown(reprlib.Repr):
    """Looks at no more of a value than it shows."""

    def __init__(self):
        """Limits that ordinary values of a configuration stay below."""
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, _VALUE, _VALUE
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write integers of more than 4300 digits, and takes its time with long ones."""
        return repr(x) if x.bit_length() < 200 else f"an integer of {x.bit_length()} bits"


_SHOWN = _Shown()


def shown(value: Any) -> str:
    """A value as it stands in a message: as `repr`, with the rest of what is long or deep left out.

    **Arguments:**

    - `value`: anything.

    **Returns:** a line of at most 120 characters.
    """
    text = _SHOWN.repr(value)
    return _cut(" ".join(text.split()) if "\n" in text else text, _VALUE)
