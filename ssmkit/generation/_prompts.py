"""Checks of the user's prompts, and padding of them to bucketed shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .._ids import as_array, read_ids
from .._types import shown, whole


class Prompts(eqx.Module):
    """Right-padded prompts; positions at or past a row's length hold id 0 and are never consumed.

    Rows past the prompts have length 0: nothing is generated for them.
    """

    tokens: Int[Array | np.ndarray, "batch time"]
    lengths: Int[Array | np.ndarray, " batch"]

    @property
    def size(self) -> int:
        """The number of rows."""
        return self.tokens.shape[0]

    def seen(self, vocab_size: int) -> Bool[Array, "batch vocab"]:
        """Which ids occur in each prompt."""
        valid = jnp.arange(self.tokens.shape[1], dtype=jnp.int32)[None, :] < self.lengths[:, None]
        return jax.vmap(lambda ids, valid: jnp.zeros(vocab_size, bool).at[ids].max(valid))(self.tokens, valid)


def bucket(length: int, least: int = 16, *, devices: int = 1) -> int:
    """The size of the buffer for `length` tokens: for each device the next power of two, at least `least`."""
    return devices * max(least, 1 << (-(-length // devices) - 1).bit_length())


def batch_bucket(rows: int, *, devices: int = 1) -> int:
    """The number of rows of an executable for these prompts: the next of 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on.

    Over several devices it is this number for each of them. A single row stays one, which they all have.
    """
    own = rows if rows == 1 else -(-rows // devices)
    power = 1 << (own - 1).bit_length()
    size = 3 * power // 4 if power >= 4 and own <= 3 * power // 4 else power
    return size if rows == 1 else devices * size


def read_prompts(prompts: Any, lengths: Any, vocab_size: int, axes: Mapping[str, int]) -> tuple[Prompts, int]:
    """Check and pad prompts.

    **Arguments:**

    - `axes`: the sizes of the axes of the mesh over which the prompts are spread.

    **Returns:** the padded prompts, on the host, and the number of rows that are prompts.

    **Raises:** `ValueError` naming the argument, for no prompts, an empty prompt, ids outside the vocabulary, or
    lengths that do not fit.
    """
    if isinstance(prompts, Sequence) and not isinstance(prompts, str | bytes):
        if lengths is not None:
            raise ValueError("`lengths` belongs to an array of prompts; a list of prompts has its own lengths.")
        rows = [_ids(f"`prompts[{i}]`", row, "time") for i, row in enumerate(prompts)]
    else:
        array = _ids("`prompts`", prompts, "batch", "time")
        rows = [row[:count] for row, count in zip(array, _counts(lengths, array), strict=True)]
    if not rows:
        raise ValueError("`prompts` must hold at least one prompt, got none.")
    for i, row in enumerate(rows):
        if row.size == 0:
            raise ValueError(f"prompt {i} is empty: give every prompt at least one token, such as the BOS id.")
        read_ids(f"prompt {i}", row, "time", vocab_size=vocab_size)
    size = batch_bucket(len(rows), devices=axes.get("data", 1))
    time = bucket(max(row.size for row in rows), devices=axes.get("sequence", 1))
    padded = np.zeros((size, time), np.int32)
    counts = np.zeros(size, np.int32)
    for i, row in enumerate(rows):
        padded[i, : row.size], counts[i] = row, row.size
    return Prompts(padded, counts), len(rows)


def is_one(prompts: Any) -> bool:
    """Whether this is one prompt, its ids or its text, and no batch."""
    if isinstance(prompts, Sequence):
        return isinstance(prompts, str) or (len(prompts) > 0 and all(whole(token) is not None for token in prompts))
    array = as_array(prompts)
    return array is not None and array.ndim == 1


def _counts(lengths: Any, array: np.ndarray) -> np.ndarray:
    """The length of every row of an array of prompts."""
    if lengths is None:
        return np.full(len(array), array.shape[1])
    counts = as_array(lengths)
    if counts is None or counts.shape != array.shape[:1] or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"`lengths` must be {len(array)} integers, one per prompt, got {shown(lengths)}.")
    if counts.size and (counts.min() < 1 or counts.max() > array.shape[1]):
        raise ValueError(
            f"`lengths` must lie in [1, {array.shape[1]}], the time axis of `prompts`, got {shown(counts.tolist())}."
        )
    return counts


def _ids(what: str, given: Any, *axes: str) -> np.ndarray:
    is_text = isinstance(given, str)
    remedy = "Texts need `tokenizer=`." if is_text else "One prompt is a list of one list: `[[1, 2, 3]]`."
    return np.asarray(read_ids(what, given, *axes, least=0, remedy=remedy))
