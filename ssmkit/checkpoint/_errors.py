"""The one exception of the checkpoint layer."""

from collections.abc import Iterable
from typing import Any

from .._shown import one_line, readable


_PROBLEMS = 20  # listed in a message
_PROBLEM, _SUMMARY = 400, 2000  # characters of a line and of a headline


class CheckpointError(ValueError):
    """The error for a checkpoint that cannot be read or written; its message lists the problems, one per line."""

    def __init__(self, summary: str, problems: Iterable[str] = ()):
        """A headline, then one bullet per problem: the first 20, each cut to a readable length.

        **Arguments:**

        - `summary`: the action that failed, and the remedy if there is one.
        - `problems`: every single problem; the attribute of the same name keeps all of them.
        """
        self.summary = readable(summary, _SUMMARY)
        self.problems = tuple(one_line(problem, _PROBLEM) for problem in problems)
        lines = [f"  - {problem}" for problem in self.problems[:_PROBLEMS]]
        if len(self.problems) > _PROBLEMS:
            lines.append(f"  - and {len(self.problems) - _PROBLEMS} more")
        super().__init__("\n".join([self.summary, *lines]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error as its arguments."""
        return type(self), (self.summary, self.problems)
