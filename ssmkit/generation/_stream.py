"""Tokens as they come."""

import itertools
from collections.abc import Generator, Iterator, Sequence
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


# Tokens per dispatch, after the first.
_TURN = 16


class Stream(Iterator[Any], Generic[Cache]):
    """What is generated, as it comes; and, once all has come, the `generation` that it amounts to."""

    def __init__(self, items: Generator[Any, None, Generation[Cache]]):
        """**Arguments:** `items`: a generator whose value is the generation."""
        self._items = items
        self._generation: Generation[Cache] | None = None

    def __next__(self) -> Any:
        """The next item."""
        try:
            return next(self._items)
        except StopIteration as end:
            self._generation = end.value or self._generation
            raise StopIteration from None

    @property
    def generation(self) -> Generation[Cache]:
        """What `ssmkit.generate` would have given, with the cache to go on from.

        **Raises:** `ValueError` while the stream has not ended: not all of it exists yet.
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
    tokenizer: Tokenizer | None = None,
    stop_text: StopTexts = None,
) -> Stream[Cache]:
    """What `generate` gives, as it comes: the first token at once, then several per dispatch.

        stream = ssmkit.stream(model, [72, 101, 108])
        for token in stream:
            print(token)
        cache = stream.generation.cache

    **Arguments:** as `generate`, and

    - `prompts`: one prompt, its ids or its text; or a batch, as for `generate`; or a `Generation` to go on from, as for
        `resume`, without `lengths` and `cache`.

    **Returns:** an iterator. For one prompt its items are ids, a stop token being the last; for a batch they are lists
    with an id for every row, `None` once that has ended. With a `tokenizer` they are pieces of text in place of ids. A
    piece never splits a character, and is no part of a stop text: what may be the beginning of one is held back until
    it is decided, and a row of a batch has an empty piece for so long.

    **Raises:** as `generate`, at the call rather than at the first token.
    """
    check_model(model)
    asked = Asked(max_new_tokens, sampler, stop_token, key, tokenizer, stop_text)
    if isinstance(prompts, Generation):
        if lengths is not None or cache is not None:
            raise ValueError("`prompts` is a generation, which has its own rows: leave out `lengths` and `cache`.")
        return Stream(_columns(turns(from_generation(model, prompts, asked), 1, _TURN)))
    single = is_one(prompts)
    task = from_prompts(model, [prompts] if single else prompts, lengths, cache, asked)
    items = turns(task, 1, _TURN)
    return Stream(_row(items) if single else _columns(items))


def _row(turns: Generator[list[list[Any]], None, Generation]) -> Generator[Any, None, Generation]:
    """The items of the only row; of texts, those that are not empty."""
    while True:
        try:
            (row,) = next(turns)
        except StopIteration as end:
            return end.value
        yield from (item for item in row if item != "")


def _columns(turns: Generator[list[list[Any]], None, Generation]) -> Generator[list[Any], None, Generation]:
    """The items of all rows, token by token; `None` where a row has no more."""
    while True:
        try:
            rows = next(turns)
        except StopIteration as end:
            return end.value
        yield from map(list, itertools.zip_longest(*rows))
