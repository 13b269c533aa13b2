"""One token: the O(1) decoding kernel, of every family."""

import einops
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._coefficients import Coefficients
from ._precision import promote


def step(
    coefficients: Coefficients, state: Inexact[Array, "heads key value"]
) -> tuple[Inexact[Array, "heads *reads value"], Inexact[Array, "heads key value"]]:
    r"""$S' = e^{a} \odot S + k v^\top$ and $y = S'^\top q$, or with a bonus $y = (S + (u \odot k) v^\top)^\top q$.

    One pass over the state: no chunk, no padding.

    **Arguments:**

    - `coefficients`: of one token, no `time` axis.
    - `state`: the state before the token; its dtype is kept.

    **Returns:** the output `(heads, value)`, or `(heads, reads, value)`, and the new state.

    **Raises:** `ValueError` for complex coefficients and a real state.
    """
    dtype = state.dtype
    coefficients, state = promote(coefficients, state)
    new = update(coefficients, state)
    if coefficients.bonus is None:
        outputs = _read(coefficients, new)
    else:
        outputs = _read(coefficients, state) + bonus_output(coefficients)
    return outputs, new.astype(dtype)


def update(coefficients: Coefficients, state: Inexact[Array, "heads key value"]) -> Inexact[Array, "heads key value"]:
    """The state after the token. Everything in one dtype."""
    write = _per_head(coefficients.write, state.shape[0])
    increment = jnp.expand_dims(write, -1) * jnp.expand_dims(coefficients.value, -2)
    if increment.ndim == 4:
        increment = jnp.sum(increment, axis=1)
    return jnp.exp(coefficients.log_decay)[:, :, None] * state + increment


def bonus_output(coefficients: Coefficients) -> Inexact[Array, "heads *reads value"]:
    """What a token that reads before the update sees of itself. Everything in one dtype."""
    bonus, heads = coefficients.bonus, coefficients.value.shape[0]
    assert bonus is not None
    read, write = (_per_head(array, heads) for array in (coefficients.read, coefficients.write))
    read, write, value = (_with_rank(array) for array in (read, write, coefficients.value))
    outputs = jnp.einsum("hqk,hk,hrk,hrv->hqv", read, bonus, write, value)
    return outputs if coefficients.read.ndim == 3 else outputs[:, 0]


def _read(coefficients: Coefficients, state: Inexact[Array, "heads key value"]) -> Inexact[Array, "heads *reads value"]:
    read = _per_head(coefficients.read, state.shape[0])
    if read.ndim == 2:
        return jnp.sum(read[:, :, None] * state, axis=1)
    return jnp.einsum("hqk,hkv->hqv", read, state)


def _with_rank(array: Array) -> Array:
    return array if array.ndim == 3 else array[:, None]


def _per_head(array: Inexact[Array, "groups *rank key"], heads: int) -> Inexact[Array, "heads *rank key"]:
    """A view: XLA fuses it into the update, so that a group is not repeated in memory.

    The state keeps its three axes for the same reason: split into (group, member), XLA's CPU backend of jax 0.10 walks
    it 18 times slower.
    """
    return einops.repeat(array, "g ... -> (g m) ...", m=heads // array.shape[0])
