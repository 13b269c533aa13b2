"""Texts in place of ids: prompts are encoded, and generated tokens are decoded one after the other."""

from collections.abc import Sequence
from typing import Any

from .._types import shown
from ..text._pieces import Before
from ..text._tokenizer import Tokenizer


class Transcript:
    """The text of one row, decoded token by token, up to the beginning of a stop text."""

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int], stops: Sequence[str]):
        """**Arguments:**

        - `after`: ids before the row's first token.
        - `stops`: the stop texts.
        """
        self._decoding, self._before = tokenizer.decoding(after), Before(stops)
        self.text = ""

    @property
    def ended(self) -> bool:
        """Whether a stop text was found."""
        return self._before.found

    def read(self, ids: Sequence[int], *, at_stop_token: bool, is_last: bool) -> list[str]:
        """The pieces that further tokens add to the text.

        **Arguments:**

        - `ids`: the tokens.
        - `at_stop_token`: whether the last token is a stop token, which is not a part of the text.
        - `is_last`: whether no tokens follow.

        **Returns:** a piece for each token that was read: all tokens, or those up to the end of a stop text.
        """
        pieces = []
        for i, token in enumerate(ids):
            is_text = not (at_stop_token and i == len(ids) - 1)
            pieces.append(self._before.push(self._decoding.push(token)) if is_text else "")
            if self.ended:
                break
        self.text += "".join(pieces)
        if is_last and pieces and not self.ended:
            pieces[-1] += self.end()
        return pieces

    def end(self) -> str:
        """The text that was held back, when no tokens follow."""
        held = self._before.push(self._decoding.end()) + self._before.end()
        self.text += held
        return held


def read_tokenizer(tokenizer: Any) -> Tokenizer | None:
    """Check a tokenizer.

    **Raises:** `ValueError` when the argument is not one.
    """
    if not isinstance(tokenizer, Tokenizer | None):
        raise ValueError(f"`tokenizer` must be an `ssmkit.Tokenizer`, got {shown(tokenizer)}.")
    return tokenizer


def encoded(prompts: Any, tokenizer: Tokenizer | None, *, special: bool) -> Any:
    """Prompts with ids in place of texts; one text is a batch of one."""
    if tokenizer is None:
        return prompts
    if isinstance(prompts, str):
        prompts = [prompts]
    if not isinstance(prompts, Sequence):
        return prompts
    return [tokenizer.encode(prompt, special=special) if isinstance(prompt, str) else prompt for prompt in prompts]


def read_stop_texts(stop_text: Any, tokenizer: Tokenizer | None, rows: int) -> list[list[str]]:
    """The stop texts of each row.

    **Arguments:**

    - `stop_text`: the user's argument: one text, several, or `None`; or a list with one of these per row.
    - `tokenizer`: the tokenizer that decodes.
    - `rows`: the number of the user's rows.

    **Raises:** `ValueError` for other arguments.
    """
    if stop_text is None:
        return [[]] * rows
    if tokenizer is None:
        raise ValueError("`stop_text` needs the tokenizer that decodes: pass `tokenizer=`.")
    if isinstance(stop_text, str) or not isinstance(stop_text, Sequence) or all(isinstance(s, str) for s in stop_text):
        return [_texts(stop_text)] * rows
    if len(stop_text) != rows:
        raise ValueError(
            f"`stop_text` must be texts for all prompts, or one entry per prompt, {rows}, got {len(stop_text)} "
            f"entries: {shown(stop_text)}."
        )
    return [_texts(stops) for stops in stop_text]


def _texts(stops: Any) -> list[str]:
    if stops is None:
        return []
    texts = [stops] if isinstance(stops, str) else stops
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"`stop_text` must have texts of at least one character, got {shown(stops)}.")
    return list(texts)
