"""Reading of the prompts of `ssmkit generate`."""

import os
import re
import sys
from pathlib import Path

from ._streams import read_input


_WRITTEN = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def unescaped(text: str) -> str:
    r"""Resolve the escapes `\n`, `\r`, `\t` and `\\` of a text on one line, as in Python."""
    return re.sub(r"\\([nrt\\])", lambda found: _WRITTEN[found[1]], text)


def read_prompts(prompt: str | None, file: str | None, batch: str | None) -> list[str]:
    """Read the prompts: one, or those of a batch.

    **Arguments:**

    - `prompt`: the text itself, or `-` for standard input. Without any argument, standard input is read too if it is
        not a terminal.
    - `file`: a file with one prompt, or `-`.
    - `batch`: a file with one prompt per line, or `-`.

    **Raises:** `ValueError` when there is no source or more than one, or when a prompt is empty or not UTF-8.
    """
    given = [source for source in (prompt, file, batch) if source is not None]
    is_piped = not given and sys.stdin is not None and not sys.stdin.isatty()
    if len(given) != 1 and not is_piped:
        raise ValueError(
            'give one prompt: ssmkit generate "TEXT", or --file FILE, or `-` for standard input; or a file of several, '
            "--batch FILE"
        )
    if batch is not None:
        prompts = [unescaped(line) for line in _read(batch).splitlines() if line]
        if not prompts:
            raise ValueError(f"--batch {batch} holds no prompt: write one per line")
        return prompts
    if file is not None:
        text = _read(file)
    elif is_piped or prompt == "-":
        text = read_input()
    else:
        text = os.fsencode(prompt or "").decode("utf-8", "surrogateescape")  # UTF-8 whatever the locale
    if not text:
        raise ValueError("the prompt is empty: give at least one character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("the prompt is not UTF-8 text")
    return [text]


def _read(name: str) -> str:
    from ..text._files import read_text

    return read_input() if name == "-" else read_text(Path(name))
