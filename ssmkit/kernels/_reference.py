"""The recurrence as it is defined, one token after the other: the oracle every kernel is tested against."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._coefficients import Coefficients


def reference(
    coefficients: Coefficients, state: Inexact[Array, "heads key value"]
) -> tuple[Inexact[Array, "time heads value"], Inexact[Array, "heads key value"]]:
    r"""Run $S_t = e^{a_t} \odot S_{t-1} + k_t v_t^\top$, $y_t = S_t^\top q_t$ token by token.

    Shares no code with the chunked kernels: groups are repeated to heads, nothing is chunked or masked. Works in
    whatever precision it is given, float64 included.

    **Arguments:**

    - `coefficients`: with a leading `time` axis on every field.
    - `state`: the state before the first token.

    **Returns:** outputs `(time, heads, value)` and the state after the last token.
    """
    members = coefficients.value.shape[1] // coefficients.write.shape[1]

    def token(state, inputs):
        log_decay, write, value, read = inputs
        write, read = (jnp.repeat(array, members, axis=0) for array in (write, read))
        state = jnp.exp(log_decay)[:, :, None] * state + write[:, :, None] * value[:, None, :]
        return state, jnp.sum(read[:, :, None] * state, axis=1)

    fields = (coefficients.log_decay, coefficients.write, coefficients.value, coefficients.read)
    state, outputs = jax.lax.scan(token, state, fields)
    return outputs, state
