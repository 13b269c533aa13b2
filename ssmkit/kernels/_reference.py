"""The recurrence by its definition, one token after the other. Every kernel is tested against it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from .._types import StateLike, checks_itself
from ._coefficients import Coefficients
from ._operands import check_operands


@checks_itself
def reference(
    coefficients: Coefficients, state: StateLike, *, starts: Bool[Array, " time"] | None = None
) -> tuple[Inexact[Array, "time heads *reads value"], Inexact[Array, "heads key value"]]:
    r"""Run the recurrence of `ssmkit.Coefficients` token by token.

    The function shares no code with the chunked kernels: groups are repeated to heads, and nothing is chunked or
    masked. It works in the precision of its arguments, float64 included.

    **Arguments:**

    - `coefficients`: the coefficients, with a leading `time` axis on every field.
    - `state`: the state before the first token.
    - `starts`: true for tokens before which the state is reset to zero; `None` means no such token.

    **Returns:** outputs `(time, heads, value)`, with an axis of reads before `value` if `read` has one, and the state
    after the last token.

    **Raises:** `ValueError` for coefficients without a `time` axis, or a state of another shape or dtype.
    """
    state = check_operands(coefficients, state, many=True)
    heads, groups = coefficients.value.shape[1], coefficients.write.shape[1]

    def token(state, inputs):
        log_decay, write, value, read, bonus, start = inputs
        if start is not None:
            state = jnp.where(start, jnp.zeros_like(state), state)
        write, read = (jnp.repeat(array, heads // groups, axis=0) for array in (write, read))
        one_write, one_read = write.ndim == 2, read.ndim == 2
        writes = [(write, value)] if one_write else [(write[:, r], value[:, r]) for r in range(write.shape[1])]
        increments = [k[:, :, None] * v[:, None, :] for k, v in writes]
        new = jnp.exp(log_decay)[:, :, None] * state + sum(increments)
        seen = new if bonus is None else state + sum(bonus[:, :, None] * increment for increment in increments)
        reads = [read] if one_read else [read[:, q] for q in range(read.shape[1])]
        outputs = [jnp.sum(q[:, :, None] * seen, axis=1) for q in reads]
        return new, outputs[0] if one_read else jnp.stack(outputs, axis=1)

    fields = coefficients.log_decay, coefficients.write, coefficients.value, coefficients.read, coefficients.bonus
    state, outputs = jax.lax.scan(token, state, (*fields, starts))
    return outputs, state
