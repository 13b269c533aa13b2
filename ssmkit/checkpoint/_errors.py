"""The one exception of the checkpoint layer."""

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written as asked; the message lists everything wrong, one line each."""

    def __init__(self, summary: str, problems: Iterable[str] = ()):
        """A headline, then one bullet per problem.

        **Arguments:**

        - `summary`: what could not be done, and the remedy where there is one.
        - `problems`: every single thing that stood in the way.
        """
        self.problems = tuple(problems)
        super().__init__("\n".join([summary, *(f"  - {problem}" for problem in self.problems)]))
