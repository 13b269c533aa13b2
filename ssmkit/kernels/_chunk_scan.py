"""The entry points of the chunked kernels, which run many tokens at once."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact, PyTree

from .._slices import Exchange, alone
from .._types import Length, StateLike, checks_itself
from ._chunk import Tokens, forgetting
from ._coefficients import Coefficients
from ._constant import constant_fields
from ._cut import cut, joined
from ._elementwise import ELEMENTWISE
from ._family import Family
from ._operands import check_operands
from ._per_key import DECAY_PER_KEY
from ._precision import in_dtype, working_dtype
from ._scalar import SCALAR_DECAY
from ._tuning import tuning


@checks_itself
def chunk_scan(
    coefficients: Coefficients,
    state: StateLike,
    *,
    starts: Bool[Array, " time"] | None = None,
) -> tuple[Inexact[Array, "time heads *reads value"], Inexact[Array, "heads key value"]]:
    """Run the recurrence over many tokens, in chunks (arXiv 2405.21060, section 6).

    The function is differentiable in all arguments, states included. `kernels.tuned` sets the chunk size and the
    schedule; the result does not depend on either beyond rounding.

    **Arguments:**

    - `coefficients`: the coefficients, with a leading `time` axis on every field.
    - `state`: the state before the first token; its dtype is kept.
    - `starts`: true for tokens before which the state is reset to zero; `None` means no such token.

    **Returns:** outputs `(time, heads, value)`, with an axis of reads before `value` if `read` has one, and the state
    after the last token.

    **Raises:** `ValueError` for coefficients without a `time` axis, a state of another shape or dtype, or
    complex coefficients and a real state.
    """
    state = check_operands(coefficients, state, many=True)
    return chunk_scan_of(lambda tokens: tokens, coefficients, state, starts=starts)


def chunk_scan_of(
    coefficients: Callable[[Any], Coefficients],
    inputs: PyTree,
    state: Inexact[Array, "heads key value"],
    *,
    length: Length | None = None,
    starts: Bool[Array, " time"] | None = None,
    most: int | None = None,
    exchange: Exchange = alone,
) -> tuple[Inexact[Array, "time heads *reads value"], Inexact[Array, "heads key value"]]:
    """Run `chunk_scan` on coefficients that are computed from `inputs` chunk by chunk, and never exist all at once.

    **Arguments:** as `chunk_scan`, and

    - `coefficients`: a function from the inputs of a chunk to its coefficients, both with a leading `time` axis.
    - `inputs`: any pytree of arrays with a leading `time` axis.
    - `length`: tokens at or past it leave the state unchanged; `None` means that all tokens are valid.
    - `starts`: true for valid tokens before which the state is reset to zero; `None` means no such token.
    - `most`: a further bound on the chunk size; `None` leaves only the chunk size of `kernels.tuning()`.
    - `exchange`: how the state before these tokens is learnt, if they are a slice of a sequence.

    **Returns:** and **Raises:** as `chunk_scan`.
    """
    form, constant = constant_fields(coefficients, inputs)
    fields = lambda made: [getattr(made, name) for name in constant]
    time, groups = form.write.shape[:2]
    dtype, family = working_dtype(form, state), family_of(form)
    chosen = tuning().chunk_size_for(family, members=form.value.shape[1] // groups)
    size = max(min(chosen, most or chosen, time), 1)

    padding = -time % size
    masked = time > 0 and (length is not None or padding > 0)
    stop = time if length is None else length
    # The last valid token replaces invalid tokens: at zeros, coefficients and their gradients may be anything.
    last = lambda array: jax.lax.stop_gradient(array[jnp.maximum(stop, 1) - 1])
    stand_in = jax.tree.map(last, inputs) if masked else None

    def prepare(chunk):
        inputs, valid, starts = chunk
        if valid is not None:
            inputs = jax.vmap(lambda token, v: _select(v, token, stand_in))(inputs, valid)
        made = in_dtype(coefficients(inputs), dtype)
        if constant:
            one = in_dtype(coefficients(jax.tree.map(lambda array: array[:1], inputs)), dtype)
            made = eqx.tree_at(fields, made, fields(one))
        if starts is not None:
            made = eqx.tree_at(lambda c: c.log_decay, made, forgetting(made.log_decay, starts))
        return Tokens(made, valid, starts)

    valid = jnp.arange(time + padding, dtype=jnp.int32) < stop if masked else None
    if padding:
        pad = lambda a: jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1))
        inputs, starts = jax.tree.map(pad, (inputs, starts))
    chunks = jax.tree.map(lambda array: cut(array, size), (inputs, valid, starts))
    order, entered = tuning().order(), family.enter(state.astype(dtype), groups)
    segment = lambda: order.segment(family, prepare, chunks, entered)
    before, finish = exchange(entered, segment, lambda state, segment: segment.after(state))
    outputs, final = order.run(family, prepare, chunks, before)
    return _by_token(outputs, form), family.leave(finish(final), state.shape).astype(state.dtype)


def _select(valid: Array, token: PyTree, stand_in: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(valid, a, b), token, stand_in)


def family_of(form: Coefficients) -> Family:
    """The kernel family for coefficients with a `time` axis. Shapes alone determine it."""
    if 1 in (form.write.shape[-1], form.value.shape[-1]):
        return ELEMENTWISE
    return SCALAR_DECAY if form.log_decay.shape[-1] == 1 else DECAY_PER_KEY


def _by_token(outputs: Array, form: Coefficients) -> Inexact[Array, "time heads *reads value"]:
    """Outputs by token, from those of all chunks, `(chunks, rows, ..., value)`; the axes `...` flatten to the heads."""
    time, heads, value = form.value.shape[0], form.value.shape[1], form.value.shape[-1]
    outputs = joined(outputs)
    if form.read.ndim == 3:
        return jnp.reshape(outputs, (-1, heads, value))[:time]
    return jnp.swapaxes(jnp.reshape(outputs, (-1, form.read.shape[2], heads, value)), 1, 2)[:time]
