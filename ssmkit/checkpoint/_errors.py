"""The one exception of the checkpoint layer."""

from collections.abc import Iterable
from typing import Any

from .._shown import one_line, readable


_PROBLEMS = 20  # listed in a message
_PROBLEM, _SUMMARY = 400, 2000  # characters of a line and of a headline


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
