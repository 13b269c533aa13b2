"""The log-probabilities of `--logprobs`."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .. import Generation
    from ..text._tokenizer import Tokenizer


def log_probs_of(generation: "Generation", words: "Tokenizer") -> list[list[dict[str, Any]]]:
    """The log-probability of every generated token, and of the most probable tokens in its place.

    **Arguments:**

    - `generation`: a generation with log-probabilities.
    - `words`: the tokenizer.

    **Returns:** for each row a list with an entry for each of its tokens. An entry has the `id`, the `text` and the
    `logprob` of the token, and a list of such entries as `top`.
    """
    import numpy as np

    arrays = generation.tokens, generation.log_probs, generation.top_tokens, generation.top_log_probs
    tokens, own, top, values = (np.asarray(array).tolist() for array in arrays)
    entry = lambda id, value: {"id": id, "text": words.written([id]), "logprob": value}
    return [
        [
            entry(tokens[row][i], own[row][i])
            | {"top": [entry(*best) for best in zip(top[row][i], values[row][i], strict=True)]}
            for i in range(length)
        ]
        for row, length in enumerate(np.asarray(generation.lengths).tolist())
    ]


def table(entries: list[dict[str, Any]]) -> str:
    """A line for each token: its log-probability and text, then the most probable tokens in its place."""
    cell = lambda entry: f"{entry['logprob']:9.4f} {entry['text']!r}"
    lines = [[cell(entry), *map(cell, entry["top"])] for entry in entries]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
    return "".join(f"{line.rstrip()}\n" for line in padded)
