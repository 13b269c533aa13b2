"""The O(1) decoding kernel for one token, for every family."""

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._products import product
from .._types import StateLike, checks_itself
from ._coefficients import Coefficients
from ._decay import decay
from ._operands import check_operands
from ._platform import platform
from ._precision import in_dtype, working_dtype


@checks_itself
def step(
    coefficients: Coefficients, state: StateLike
) -> tuple[Inexact[Array, "heads *reads value"], Inexact[Array, "heads key value"]]:
    r"""$S' = e^{a} \odot S + k v^\top$ and $y = S'^\top q$, or with a bonus $y = (S + (u \odot k) v^\top)^\top q$.

    It is one pass over the state, without chunks or padding.

    **Arguments:**

    - `coefficients`: the coefficients of one token, without a `time` axis.
    - `state`: the state before the token; its dtype is kept.

    **Returns:** the output `(heads, value)`, or `(heads, reads, value)`, and the new state.

    **Raises:** `ValueError` for coefficients with a `time` axis, a state of another shape or dtype, or complex
    coefficients and a real state.
    """
    state = check_operands(coefficients, state, many=False)
    dtype = working_dtype(coefficients, state)
    coefficients = in_dtype(coefficients, dtype)
    decays = decay(coefficients.log_decay).apart()
    if platform() == "cpu":  # whose backend of XLA would recompute the coefficients for every entry of the state
        coefficients, decays = jax.lax.optimization_barrier((coefficients, decays))
    before = state.astype(dtype)
    write, read = (_per_head(array, state.shape[0]) for array in (coefficients.write, coefficients.read))
    increment = write[..., None] * jnp.expand_dims(coefficients.value, -2)
    if increment.ndim == 4:
        increment = jnp.sum(increment, axis=1)
    new = jax.tree.map(lambda part: part[:, :, None], decays)(before, increment)
    seen = new if coefficients.bonus is None else before + coefficients.bonus[:, :, None] * increment
    if read.ndim == 2:
        outputs = jnp.sum(read[:, :, None] * seen, axis=1)
    else:
        outputs = product("hqk,hkv->hqv", read, seen)
    return outputs, new.astype(state.dtype)


def _per_head(array: Inexact[Array, "groups *rank key"], heads: int) -> Inexact[Array, "heads *rank key"]:
    """Repeat groups to heads, as a view: XLA fuses it into the update, so that a group is not repeated in memory.

    The state keeps its three axes for speed, too: if its heads were split into (group, member), XLA's CPU backend of
    jax 0.10 would walk it 18 times slower.
    """
    return einops.repeat(array, "g ... -> (g m) ...", m=heads // array.shape[0])
