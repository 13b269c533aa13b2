"""The request of each row: its limit, its stop tokens and its sampler."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._ids import as_array
from .._types import shown, whole
from ._prompts import bucket
from ._sampling import AbstractSampler, Greedy, Sampler, mixed


_MOST_TOKENS = 2**30


class Request(eqx.Module):
    """The requests of all rows, as data, so that rows with different requests share an executable."""

    limits: Int[Array | np.ndarray, " batch"]
    """The largest number of new tokens of each row."""
    stops: Int[Array | np.ndarray, "batch stops"]
    """The ids to stop at, padded with -1, which no token equals."""
    sampler: AbstractSampler
    """A sampler of one kind for all rows. Its arrays, which are the settings, have a leading `batch` axis."""


def read_limits(max_new_tokens: Any, rows: int) -> list[int]:
    """The largest number of new tokens of each row, from one number or one per row.

    **Raises:** `ValueError` for anything else.
    """
    array = as_array(max_new_tokens)
    if array is None or array.ndim != 1 or isinstance(max_new_tokens, str | bytes):
        return [_count(max_new_tokens)] * rows
    if len(array) != rows:
        raise ValueError(f"`max_new_tokens` must be one integer, or one per prompt, {rows}, got {len(array)}.")
    return [_count(count) for count in max_new_tokens]


def read_stops(stop_token: Any, vocab_size: int, own: tuple[int, ...], rows: int) -> list[list[int]]:
    """The stop ids of each row.

    **Arguments:**

    - `stop_token`: the user's argument: one id, several, or `None` for those of the model; or a list with one of these
        per row.
    - `vocab_size`: the user's ids must lie below it.
    - `own`: the stop tokens of the model.
    - `rows`: the number of the user's rows.

    **Raises:** `ValueError` for ids outside the vocabulary, or when the number of entries is not that of the rows.
    """
    if not _is_per_row(stop_token):
        return [_stop_ids(stop_token, vocab_size, own)] * rows
    if len(stop_token) != rows:
        raise ValueError(
            f"`stop_token` must be ids for all prompts, or one entry per prompt, {rows}, got "
            f"{len(stop_token)} entries: {shown(stop_token)}."
        )
    return [_stop_ids(stops, vocab_size, own) for stops in stop_token]


def read_sampler(sampler: Any, rows: int) -> list[AbstractSampler]:
    """The sampler of each row, from one sampler or one per row.

    **Raises:** `ValueError` for anything else.
    """
    samplers = list(sampler) if isinstance(sampler, list | tuple) else [sampler] * rows
    if len(samplers) != rows:
        raise ValueError(f"`sampler` must be one sampler, or one per prompt, {rows}, got {len(samplers)}.")
    for one in samplers:
        if not isinstance(one, AbstractSampler):
            raise ValueError(f"`sampler` must be a sampler such as `ssmkit.Greedy()`, got {shown(one)}.")
    if len(set(map(_kind, samplers))) == 1:
        return samplers
    if not all(isinstance(one, Greedy | Sampler) for one in samplers):
        names = sorted({type(one).__name__ for one in samplers})
        raise ValueError(
            "`sampler` must be `Greedy()` or a `Sampler` in every row, or of one class with the same settings but for "
            f"arrays, got {names}."
        )
    return [mixed(one) for one in samplers]  # pyright: ignore[reportArgumentType]


def as_request(limits: Sequence[int], stops: Sequence[Sequence[int]], samplers: Sequence[AbstractSampler], size: int):
    """The arrays of a request, on the host, for all rows of the executable; added rows request no tokens."""
    width = bucket(max(map(len, stops)) + 1, 8)
    ids = np.full((size, width), -1, np.int32)
    for row, own in zip(ids, stops, strict=False):
        row[: len(own)] = own
    counts = np.zeros(size, np.int32)
    counts[: len(limits)] = limits
    settings, kind = eqx.partition(samplers[0], eqx.is_array)
    if jax.tree.leaves(settings):
        every = [eqx.filter(one, eqx.is_array) for one in [*samplers, *[samplers[-1]] * (size - len(samplers))]]
        settings = _stacked(every)
    return Request(limits=counts, stops=ids, sampler=eqx.combine(settings, kind))


def _stacked(trees: list[Any]) -> Any:
    """Stack arrays on the host if possible, so that nothing is compiled."""

    def stack(*leaves):
        if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
            return jnp.stack(leaves)
        return np.stack([np.asarray(leaf) for leaf in leaves])

    return jax.tree.map(stack, *trees)


def _kind(sampler: AbstractSampler) -> Any:
    """The common part of samplers that share an executable: class, static values, and the form of arrays."""
    settings, rest = eqx.partition(sampler, eqx.is_array)
    forms = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(settings))
    return jax.tree.structure(settings), forms, tuple(map(repr, jax.tree.leaves(rest)))


def _is_per_row(stop_token: Any) -> bool:
    array = as_array(stop_token)
    if isinstance(stop_token, list | tuple):
        return any(stop is None or isinstance(stop, list | tuple) or np.ndim(stop) > 0 for stop in stop_token)
    return array is not None and array.ndim == 2


def _stop_ids(stop_token: Any, vocab_size: int, own: tuple[int, ...]) -> list[int]:
    if stop_token is None:
        return list(own)
    array = as_array(stop_token)
    stops = [stop_token] if array is None else np.atleast_1d(array).tolist()
    wrong = [stop for stop in stops if whole(stop) is None or not 0 <= stop < vocab_size]
    if wrong:
        raise ValueError(f"`stop_token` must have ids in [0, {vocab_size}), got {shown(wrong)}.")
    return stops


def _count(max_new_tokens: Any) -> int:
    count = whole(max_new_tokens)
    if count is None or not 0 <= count <= _MOST_TOKENS:
        raise ValueError(f"`max_new_tokens` must be an integer in [0, {_MOST_TOKENS}], got {shown(max_new_tokens)}.")
    return count
