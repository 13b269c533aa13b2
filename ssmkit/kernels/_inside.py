"""What a scan goes through, for those who study it: every state, and the matrix that a recurrence amounts to."""

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
    """The state after every token, one `step` after the other.

    A scan in chunks never holds them: `time` states are as many times the memory of one.

    **Arguments:**

    - `coefficients`: with a leading `time` axis on every field.
    - `state`: the state before the first token; its dtype is kept.
    - `starts`: before these tokens the state is zero again; `None` means nowhere.

    **Returns:** the states, of which the last is that of `chunk_scan`.

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

    It is what attention would call its scores (arXiv 2405.21060, section 3). Values do not enter: its columns are the
    outputs for unit values. Where tokens write or read several times, each write and each read has its own entries.

    **Arguments:**

    - `coefficients`: with a leading `time` axis on every field.
    - `starts`: before these tokens the state is empty again: $M$ is then block-diagonal. `None` means nowhere.

    **Returns:** `(heads, time, time)`, in float32 or wider, and complex where the coefficients are; with axes of reads
    and of writes (`rank`) after the times if the coefficients have them.

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
