"""The one exception of the checkpoint layer, and how values of a file are shown in it: never at their full length."""

import re
import reprlib
from collections.abc import Iterable
from typing import Any


_PROBLEMS = 20  # listed in a message
_PROBLEM, _SUMMARY, _VALUE = 400, 2000, 120  # characters of a line, of a headline and of a value

_UNUSUAL = re.compile(r"[^ -~\n]")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written as asked; the message lists what is wrong, one line each."""

    def __init__(self, summary: str, problems: Iterable[str] = ()):
        """A headline, then one bullet per problem: the first 20, each cut to a readable length.

        **Arguments:**

        - `summary`: what could not be done, and the remedy where there is one.
        - `problems`: every single thing that stood in the way; all of them are kept in the attribute of that name.
        """
        self.summary = readable(summary, _SUMMARY)
        self.problems = tuple(one_line(problem, _PROBLEM) for problem in problems)
        lines = [f"  - {problem}" for problem in self.problems[:_PROBLEMS]]
        if len(self.problems) > _PROBLEMS:
            lines.append(f"  - and {len(self.problems) - _PROBLEMS} more")
        super().__init__("\n".join([self.summary, *lines]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was made of."""
        return type(self), (self.summary, self.problems)


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
    """A value of a file as it stands in a message: as `repr`, with the rest of what is long or deep left out.

    **Arguments:**

    - `value`: anything that a configuration may hold.

    **Returns:** at most about a line.
    """
    return _cut(_SHOWN.repr(value), _VALUE)
