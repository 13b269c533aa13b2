"""The inside of a scan, for research: every state, and the matrix of a recurrence."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from .._types import StateLike, checks_itself
from ._chunk_scan import chunk_scan
from ._coefficients import Coefficients
from ._operands import check_coefficients, check_operands
from ._step import step


@checks_itself
def states(
    coefficients: Coefficients, state: StateLike, *, starts: Bool[Array, " time"] | None = None
) -> Inexact[Array, "time heads key value"]:
    """The state after every token, computed by one `step` after the other.

    A chunked scan never stores these states: together they take `time` times the memory of one state.

    **Arguments:**

    - `coefficients`: the coefficients, with a leading `time` axis on every field.
    - `state`: the state before the first token; its dtype is kept.
    - `starts`: true for tokens before which the state is reset to zero; `None` means no such token.

    **Returns:** the states. The last state is that of `chunk_scan`.

    **Raises:** as `reference`.
    """

    def token(before, inputs):
        coefficients, start = inputs
        if start is not None:
            before = jnp.where(start, jnp.zeros_like(before), before)
        after = step(coefficients, before)[1]
        return after, after

    return jax.lax.scan(token, check_operands(coefficients, state, many=True), (coefficients, starts))[1]


@checks_itself
def matrix(
    coefficients: Coefficients, *, starts: Bool[Array, " time"] | None = None
) -> Inexact[Array, "heads time ..."]:
    r"""The lower-triangular $M$ of each head with $y_t = \sum_{s \le t} M_{ts} v_s$, from an empty state.

    The matrix corresponds to the scores of attention (arXiv 2405.21060, section 3). It does not depend on the values:
    its columns are the outputs for unit values. If tokens write or read several times, each write and each read has its
    own entries.

    **Arguments:**

    - `coefficients`: the coefficients, with a leading `time` axis on every field.
    - `starts`: true for tokens before which the state is reset to zero, so that $M$ is block-diagonal; `None` means no
        such token.

    **Returns:** $M$ of shape `(heads, time, time)`, in float32 or wider, and complex if the coefficients are. It has
    axes of reads and of writes (`rank`) after the times if the coefficients have them.

    **Raises:** as `reference`.
    """
    check_coefficients(coefficients, many=True)
    time, heads, *rank, _ = coefficients.value.shape
    unit = jnp.reshape(jnp.eye(time * math.prod(rank), dtype=jnp.float32), (time, 1, *rank, time * math.prod(rank)))
    unit = jnp.broadcast_to(unit, (time, heads, *unit.shape[2:]))
    coefficients = eqx.tree_at(lambda c: c.value, coefficients, unit)
    key, values = coefficients.write.shape[-1], unit.shape[-1]
    dtypes = [array.dtype for array in jax.tree.leaves(coefficients)]
    with jax.numpy_dtype_promotion("standard"):
        state = jnp.zeros((heads, key, values), jnp.result_type(*dtypes))
    outputs = jnp.swapaxes(chunk_scan(coefficients, state, starts=starts)[0], 0, 1)
    return jnp.reshape(outputs, (*outputs.shape[:-1], time, *rank))
