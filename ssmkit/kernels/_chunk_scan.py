"""Many tokens at once: the entry point of the chunked kernels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._coefficients import Coefficients
from . import _scalar
from ._precision import working_dtype
from ._schedule import Schedule, backend_chunk_size, backend_schedule, split


def chunk_scan(
    coefficients: Coefficients,
    state: Inexact[Array, "heads key value"],
    *,
    chunk_size: int | None = None,
    schedule: Schedule | None = None,
) -> tuple[Inexact[Array, "time heads value"], Inexact[Array, "heads key value"]]:
    """The recurrence over many tokens, in chunks (arXiv 2405.21060, section 6).

    Differentiable in everything, the states included. The result does not depend on `chunk_size` or `schedule`
    beyond rounding.

    **Arguments:**

    - `coefficients`: with a leading `time` axis on every field.
    - `state`: the state before the first token; its dtype is kept.
    - `chunk_size`: tokens per chunk, any positive number; `None` chooses for the default backend.
    - `schedule`: `serial`, `parallel`, or `None` to choose for the default backend.

    **Returns:** outputs `(time, heads, value)` and the state after the last token.

    **Raises:** `ValueError` for a `chunk_size` below 1, `NotImplementedError` for a decay per key channel.
    """
    if chunk_size is None:
        chunk_size = backend_chunk_size()
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
    if coefficients.log_decay.shape[-1] != 1:
        raise NotImplementedError(
            "chunk_scan: a decay per key channel (axis `key` of `log_decay` wider than 1) has no chunked kernel yet, "
            f"got shape {coefficients.log_decay.shape}. Use one decay per head: `log_decay` of shape (heads, 1)."
        )
    schedule = backend_schedule() if schedule is None else schedule
    time, heads, value = coefficients.value.shape
    groups = coefficients.write.shape[1]
    dtype = working_dtype(coefficients, state)
    coefficients = jax.tree.map(lambda array: array.astype(dtype), coefficients)
    chunks = split(coefficients, min(chunk_size, max(time, 1)))
    outputs, final = schedule(_scalar.SCALAR_DECAY, chunks, _scalar.enter(state.astype(dtype), groups))
    outputs = jnp.reshape(outputs, (outputs.shape[0] * outputs.shape[1], heads, value))[:time]
    return outputs, _scalar.leave(final).astype(state.dtype)
