"""Streaming of generated tokens."""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic

import numpy as np
from jaxtyping import Array, Int

from .._arguments import check_model
from .._language_model import AbstractLanguageModel
from .._types import checks_itself
from ..mixers._mixer import Cache
from ..text._tokenizer import Tokenizer
from ._generate import Batch, Ids, Samplers, StopTexts, StopTokens
from ._keys import Keys
from ._prompts import is_one
from ._sampling import Greedy
from ._state import Generation
from ._task import Asked, from_generation, from_prompts, turns


# The number of tokens per dispatch, after the first token.
_TURN = 16


class Stream(Iterator[Any], Generic[Cache]):
    """An iterator over generated items. At its end it has the resulting `generation`."""

    def __init__(self, items: Callable[[Callable[[], bool]], Generator[Any, None, Generation[Cache]]]):
        """**Arguments:**

        - `items`: makes a generator that returns the generation at its end. It gets a function that says whether to go
            on; the generator ends soon after it says no.
        """
        self._goes_on = True
        self._items = items(lambda: self._goes_on)
        self._generation: Generation[Cache] | None = None

    def __next__(self) -> Any:
        """The next item."""
        try:
            return next(self._items)
        except StopIteration as end:
            self._generation = end.value or self._generation
            raise StopIteration from None

    def stop(self) -> None:
        """End the stream early: no further tokens are computed, and those that are computed are its last items.

        The stream then has a `generation` with the tokens so far, from which to continue. This may be called at any
        time, also by a signal's handler.
        """
        self._goes_on = False

    @property
    def generation(self) -> Generation[Cache]:
        """The result that `ssmkit.generate` would have returned, with the cache from which to continue.

        **Raises:** `ValueError` while the stream has not ended.
        """
        if self._generation is None:
            raise ValueError("`generation` is there when the stream has ended: take all of its items first.")
        return self._generation


@checks_itself
def stream(
    model: AbstractLanguageModel[Cache],
    prompts: str | Ids | Sequence[str | Ids] | Batch | Generation[Cache],
    max_new_tokens: int | Sequence[int] = 64,
    sampler: Samplers = Greedy(),  # noqa: B008 (immutable)
    *,
    lengths: Int[Array, " batch"] | np.ndarray | Sequence[int] | None = None,
    stop_token: StopTokens = None,
    cache: Cache | None = None,
    key: Keys | None = None,
    log_probs: int | None = None,
    tokenizer: Tokenizer | None = None,
    stop_text: StopTexts = None,
) -> Stream[Cache]:
    """Yield the tokens of `generate` as they are generated: the first at once, then several per dispatch.

        stream = ssmkit.stream(model, [72, 101, 108])
        for token in stream:
            print(token)
        cache = stream.generation.cache

    **Arguments:** as `generate`, and

    - `prompts`: one prompt, as ids or text; or a batch, as for `generate`; or a `Generation` to continue, as for
        `resume`, without `lengths` and `cache`.

    **Returns:** an iterator. For one prompt, its items are ids; a stop token is the last item. For a batch, they are
    lists with an id for every row, and `None` for rows that have ended. With a `tokenizer`, pieces of text replace the
    ids. A piece never splits a character and is never a part of a stop text. The possible beginning of a stop text is
    held back until it is decided; a row of a batch has empty pieces meanwhile.

    **Raises:** as `generate`, at the call rather than at the first token.
    """
    check_model(model)
    asked = Asked(max_new_tokens, sampler, stop_token, key, tokenizer, stop_text, log_probs)
    if isinstance(prompts, Generation):
        if lengths is not None or cache is not None:
            raise ValueError("`prompts` is a generation, which has its own rows: leave out `lengths` and `cache`.")
        task = from_generation(model, prompts, asked)
        return Stream(lambda goes_on: _columns(turns(task, 1, _TURN, goes_on)))
    single = is_one(prompts)
    task = from_prompts(model, [prompts] if single else prompts, lengths, cache, asked)
    columns = _row if single else _columns
    return Stream(lambda goes_on: columns(turns(task, 1, _TURN, goes_on)))


def _row(turns: Generator[list[list[Any]], None, Generation]) -> Generator[Any, None, Generation]:
    """The items of the only row; empty texts are left out."""
    while True:
        try:
            (row,) = next(turns)
        except StopIteration as end:
            return end.value
        yield from (item for item in row if item != "")


def _columns(turns: Generator[list[list[Any]], None, Generation]) -> Generator[list[Any], None, Generation]:
    """The items of all rows, token by token; `None` for a row without further tokens."""
    while True:
        try:
            rows = next(turns)
        except StopIteration as end:
            return end.value
        yield from map(list, itertools.zip_longest(*rows))
