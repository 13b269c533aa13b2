"""The common part of `generate`, `resume` and `stream`: the check of their arguments, and two ways to run them."""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._types import shown, whole
from ..parallel._place import AbstractPlace, place_of
from . import rows as axis
from ._cache import check_cache, check_generation
from ._engine import Inputs, begin, proceed
from ._keys import check_key, plain_keys, row_keys
from ._prompts import Prompts, batch_bucket, bucket, read_prompts
from ._records import Records, empty
from ._requests import as_request, read_limits, read_sampler, read_stops
from ._sampling import AbstractSampler
from ._state import Generation, Rows
from ._texts import Transcript, encoded, read_stop_texts, read_tokenizer


Tree = TypeVar("Tree")


class Asked(NamedTuple):
    """The arguments of a user, as given."""

    max_new_tokens: Any
    sampler: Any
    stop_token: Any
    key: Any
    tokenizer: Any = None
    stop_text: Any = None
    log_probs: Any = None


class Task(NamedTuple):
    """The checked arguments of a user. A task runs once, because its start is donated."""

    model: Any
    place: AbstractPlace
    """Where the model and all rows lie."""
    start: Rows | tuple[Prompts, Any, Any]
    """The rows to continue from; or prompts, a key per row, and a cache."""
    limits: list[int]
    stops: list[list[int]]
    samplers: list[AbstractSampler]
    size: int
    """The number of rows of the executable. The number of the user's rows is that of `limits`."""
    transcripts: list[Transcript] | None
    has_stop_texts: bool
    log_probs: int | None

    def run(self, limits: Sequence[int], capacity: int, start: Any) -> Generation:
        """Run the engine once.

        **Arguments:**

        - `limits`: the limit of each row of the user.
        - `capacity`: static; at least the largest limit.
        - `start`: as the field of this name; donated.

        **Raises:** `FloatingPointError` when the model's logits are not finite.
        """
        request = self.place.put(as_request(limits, self.stops, self.samplers, self.size))
        inputs = Inputs(self.model, request, log_probs=self.log_probs)
        with self.place.active():
            if isinstance(start, Rows):
                cache = self.model.reserve(start.cache, capacity)
                result, finite = proceed(inputs, capacity, dataclasses.replace(start, cache=cache))
            else:
                prompts, keys, cache = start
                if cache is not None:
                    cache = self.model.reserve(cache, prompts.tokens.shape[1] + capacity)
                result, finite = begin(dataclasses.replace(inputs, prompts=prompts, keys=keys), capacity, cache)
        for array in jax.tree.leaves((finite, result.lengths, result.finished, _every_record(result))):
            array.copy_to_host_async()  # all of them on one way, before the host waits for the first
        bad = np.flatnonzero(~np.asarray(finite)[: len(limits)])
        if bad.size:
            raise FloatingPointError(
                f"the model's logits are not finite in rows {bad.tolist()}: its weights or its cache hold NaN or "
                "infinity, or its cache had no room for all tokens (an exported model has room for its `context`)."
            )
        return result


def from_prompts(model: Any, prompts: Any, lengths: Any, cache: Any, asked: Asked) -> Task:
    """The task of `generate`.

    **Raises:** `ValueError` naming the argument.
    """
    place, model = place_of(model)
    tokenizer = read_tokenizer(asked.tokenizer)
    texts = encoded(prompts, tokenizer, special=cache is None)
    batch, rows = read_prompts(texts, lengths, model.vocab_size, place.sizes)
    after = [ids[:length] for ids, length in zip(batch.tokens, batch.lengths[:rows], strict=False)]
    samplers = read_sampler(asked.sampler, rows)
    check_key(samplers, asked.key is not None)
    keys = row_keys(asked.key, rows, batch.size)
    if cache is not None:
        check_cache(model, cache, rows)
        cache = _with_rows(place, cache, rows, batch.size)
    batch, keys = place.put((batch, keys))
    return _task(model, place, (batch, keys, cache), batch.size, samplers, after, asked)


def from_generation(model: Any, generation: Any, asked: Asked) -> Task:
    """The task of `resume`.

    **Raises:** `ValueError` naming the argument.
    """
    rows = check_generation(model, generation)
    samplers = read_sampler(asked.sampler, rows)
    if samplers[0].needs_history and generation.rows.history is None:
        raise ValueError("`sampler` has a repetition penalty, but `generation` was made by one without.")
    has_key = asked.key is not None or generation.rows.key_kind is not None
    check_key(samplers, has_key, "`generation` was made without one; ")
    place, model = place_of(model)
    start = _padded(place, generation.rows)
    size = start.finished.shape[0]
    if asked.key is not None:
        data, kind = plain_keys(row_keys(asked.key, rows, size), size)
        start = dataclasses.replace(start, keys=place.put(data), key_kind=kind)
    tokens, lengths, last = map(np.asarray, (generation.tokens, generation.lengths, generation.rows.last))
    after = [tokens[i, : lengths[i]] if lengths[i] else last[i : i + 1] for i in range(rows)]
    return _task(model, place, start, size, samplers, after, asked)


def at_once(task: Task) -> Generation:
    """Generate all tokens in one executable."""
    most = max(task.limits)
    result = task.run(task.limits, 0 if most == 0 else bucket(most), task.start)
    count = len(task.limits)
    if task.transcripts is not None:
        _read(task.transcripts, _new_ids(result, count), result, [True] * count)
    return _concluded(task, [_records(result, most)], result.rows, np.asarray(result.lengths)[:count])


def turns(
    task: Task, first: int, length: int, goes_on: Callable[[], bool] = lambda: True
) -> Generator[list[list[Any]], None, Generation]:
    """Generate a few tokens per turn, with one dispatch per turn.

    **Arguments:**

    - `first`: the number of tokens of the first turn, at most `length`.
    - `length`: the number of tokens of every other turn.
    - `goes_on`: is asked before every turn. If it says no, the iterator ends, after the text that was held back.

    **Returns:** an iterator over turns. A turn has the new ids of every row, or the pieces of its text; an ended row
    has fewer or none. At its end the iterator returns the result of all turns, as `at_once` does.
    """
    start = task.start if isinstance(task.start, Rows) else task.run([0] * len(task.limits), 0, task.start).rows
    left, ask, records, lengths = task.limits, first, [], [0] * len(task.limits)
    while any(limits := _next_limits(left, ask, np.asarray(start.finished))):
        if not goes_on():
            if task.transcripts is not None:
                rows = zip(task.transcripts, limits, strict=True)
                yield [[transcript.end()] if limit else [] for transcript, limit in rows]
            break
        is_last = [limit == most for limit, most in zip(limits, left, strict=True)]
        turn, items = _turn(task, limits, length, is_last, start)
        records.append(_records(turn, max(limits)))
        lengths = [before + len(new) for before, new in zip(lengths, items, strict=True)]
        left = [most - limit for most, limit in zip(left, limits, strict=True)]
        start, ask = turn.rows, length
        yield items
    return _concluded(task, records, start, lengths)


def _next_limits(left: Sequence[int], most: int, finished: np.ndarray) -> list[int]:
    return [0 if finished[i] else min(count, most) for i, count in enumerate(left)]


def _turn(task: Task, limits: list[int], capacity: int, is_last: Sequence[bool], start: Rows):
    """Run one turn, and return for every row its new ids, or the pieces of its text.

    If a stop text ends rows before their limits, the turn is run again from its start, with limits that end the rows
    there. Rows are therefore always the state after exactly their tokens.
    """
    kept = _with_rows(task.place, start, task.size, task.size) if task.has_stop_texts else None
    turn = task.run(limits, capacity, start)
    ids = _new_ids(turn, len(limits))
    if task.transcripts is None:
        return turn, ids
    pieces = _read(task.transcripts, ids, turn, is_last)
    if kept is not None:
        counts = list(map(len, pieces))
        if counts != list(map(len, ids)):
            turn = task.run(counts, capacity, kept)
        finished = np.array(turn.finished)
        finished[: len(limits)] |= [transcript.ended for transcript in task.transcripts]
        turn = dataclasses.replace(turn, rows=dataclasses.replace(turn.rows, finished=task.place.put(finished)))
    return turn, pieces


def _new_ids(result: Generation, rows: int) -> list[list[int]]:
    tokens, lengths = np.asarray(result.tokens), np.asarray(result.lengths)
    return [tokens[i, : lengths[i]].tolist() for i in range(rows)]


def _read(
    transcripts: list[Transcript], ids: list[list[int]], result: Generation, is_last: Sequence[bool]
) -> list[list[str]]:
    """The pieces that new ids add to the texts of all rows."""
    finished = np.asarray(result.finished)
    return [
        transcript.read(own, at_stop_token=bool(finished[i]), is_last=bool(finished[i] or is_last[i]))
        for i, (transcript, own) in enumerate(zip(transcripts, ids, strict=True))
    ]


def _concluded(task: Task, records: list[Records], rows: Rows, lengths: Sequence[int] | np.ndarray) -> Generation:
    """The result of a task: the user's rows, with the records of all turns."""
    count, most = len(task.limits), max(task.limits)
    # This runs on the host, where nothing is compiled for a size.
    whole = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *records or [_none(task)])
    whole = jax.tree.map(lambda x: x[:count], whole)
    if short := most - whole.tokens.shape[1]:
        whole = jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2)), whole)
        is_past = np.arange(most) >= np.array(lengths)[:, None]
        whole = whole._replace(tokens=np.where(is_past, np.asarray(rows.last)[:count, None], whole.tokens))
    if task.size != count:
        rows = _with_rows(task.place, rows, task.size, count)
    own = task.place.put(whole._asdict() | {"lengths": np.asarray(lengths, np.int32)})
    return task.place.give(Generation(**own, rows=rows))


def _none(task: Task) -> Records:
    return jax.tree.map(np.asarray, empty(task.size, 0, task.log_probs))


def _task(model, place, start, size: int, samplers, after: list[np.ndarray], asked: Asked) -> Task:
    rows = len(after)
    tokenizer = read_tokenizer(asked.tokenizer)
    stop_texts = read_stop_texts(asked.stop_text, tokenizer, rows)
    transcripts = None
    if tokenizer is not None:
        pairs = zip(after, stop_texts, strict=True)
        transcripts = [Transcript(tokenizer, ids.tolist(), texts) for ids, texts in pairs]
    return Task(
        model=model,
        place=place,
        start=start,
        limits=read_limits(asked.max_new_tokens, rows),
        stops=read_stops(asked.stop_token, model.vocab_size, model.stop_tokens, rows),
        samplers=samplers,
        size=size,
        transcripts=transcripts,
        has_stop_texts=any(stop_texts),
        log_probs=_read_log_probs(asked.log_probs, model.vocab_size),
    )


def _read_log_probs(log_probs: Any, vocab_size: int) -> int | None:
    count = whole(log_probs)
    if log_probs is not None and (count is None or not 0 <= count <= vocab_size):
        raise ValueError(f"`log_probs` must be an integer in [0, {vocab_size}], or `None`, got {shown(log_probs)}.")
    return count


def _records(result: Generation, count: int) -> Records:
    """The records of the first `count` tokens."""
    return jax.tree.map(lambda x: np.asarray(x)[:, :count], _every_record(result))


def _every_record(result: Generation) -> Records:
    return Records(*(getattr(result, name) for name in Records._fields))


def _padded(place: AbstractPlace, rows: Rows) -> Rows:
    """A copy with the number of rows of an executable; added rows are finished."""
    count = rows.finished.shape[0]
    size = batch_bucket(count, devices=place.sizes.get("data", 1))
    finished = np.pad(np.asarray(rows.finished), (0, size - count), constant_values=True)
    return dataclasses.replace(_with_rows(place, rows, count, size), finished=place.put(finished))


def _with_rows(place: AbstractPlace, tree: Tree, rows: int, size: int) -> Tree:
    """A copy with `size` rows, at the place: the first rows, or all rows and the last one repeated."""
    tree = place.take(tree)
    with place.active():
        copy = _copied(tree) if rows == size else _resized(tree, size)
    return place.take(copy)


@eqx.filter_jit
def _copied(tree: Tree) -> Tree:
    """A copy of all arrays by one executable: a call for each of them would take longer than the copies."""
    return jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, tree)


_resized = eqx.filter_jit(axis.resized)
