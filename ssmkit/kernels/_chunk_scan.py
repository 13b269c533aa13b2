"""Many tokens at once: the entry point of the chunked kernels."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._coefficients import Coefficients
from ._chunk import join, split
from ._elementwise import ELEMENTWISE
from ._per_key import DECAY_PER_KEY
from ._precision import promote
from ._scalar import SCALAR_DECAY
from ._schedule import Family, Schedule, backend_chunk_size, backend_schedule
from ._step import bonus_output, update


def family(coefficients: Coefficients) -> Family:
    """The kernel family that suits these coefficients, by their shapes alone."""
    if 1 in (coefficients.write.shape[-1], coefficients.value.shape[-1]):
        return ELEMENTWISE
    return SCALAR_DECAY if coefficients.log_decay.shape[-1] == 1 else DECAY_PER_KEY


def chunk_scan(
    coefficients: Coefficients,
    state: Inexact[Array, "heads key value"],
    *,
    chunk_size: int | None = None,
    schedule: Schedule | None = None,
) -> tuple[Inexact[Array, "time heads *reads value"], Inexact[Array, "heads key value"]]:
    """The recurrence over many tokens, in chunks (arXiv 2405.21060, section 6).

    Differentiable in everything, the states included. The result does not depend on `chunk_size` or `schedule`
    beyond rounding.

    **Arguments:**

    - `coefficients`: with a leading `time` axis on every field.
    - `state`: the state before the first token; its dtype is kept.
    - `chunk_size`: tokens per chunk, any positive number; `None` chooses for the default backend.
    - `schedule`: `serial`, `parallel`, or `None` to choose for the default backend.

    **Returns:** outputs `(time, heads, value)`, with an axis of reads before `value` if `read` has one, and the state
    after the last token.

    **Raises:** `ValueError` for a `chunk_size` below 1, or complex coefficients and a real state.
    """
    if chunk_size is None:
        chunk_size = backend_chunk_size()
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
    schedule = backend_schedule() if schedule is None else schedule
    dtype = state.dtype
    coefficients, state = promote(coefficients, state)
    scan = _read_after_update if coefficients.bonus is None else _read_before_update
    outputs, state = scan(coefficients, state, chunk_size, schedule)
    return outputs, state.astype(dtype)


def _read_after_update(
    coefficients: Coefficients, state: Array, chunk_size: int, schedule: Schedule
) -> tuple[Array, Array]:
    chosen = family(coefficients)
    chunks = split(coefficients, min(chunk_size, max(coefficients.value.shape[0], 1)))
    outputs, state = schedule(chosen, chunks, chosen.enter(state, coefficients.write.shape[1]))
    return join(outputs, coefficients), chosen.leave(state)


def _read_before_update(
    coefficients: Coefficients, state: Array, chunk_size: int, schedule: Schedule
) -> tuple[Array, Array]:
    """The same scan with every write and decay one token late: the state at a token is then the one before it."""
    token = jax.vmap(bonus_output)(coefficients)
    if coefficients.value.shape[0] == 0:
        return token, state
    fields = lambda c: (c.log_decay, c.write, c.value, c.bonus)  # noqa: E731
    late = [jnp.concatenate([jnp.zeros_like(array[:1]), array[:-1]]) for array in fields(coefficients)[:3]]
    outputs, state = _read_after_update(eqx.tree_at(fields, coefficients, (*late, None)), state, chunk_size, schedule)
    last = jax.tree.map(lambda array: array[-1], coefficients)
    return outputs + token, update(last, state)
