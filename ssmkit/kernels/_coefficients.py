"""`Coefficients`: the effect of one token on the state of a diagonal linear recurrence."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Inexact

from .._types import Valid, checks_itself


class Coefficients(eqx.Module):
    r"""The contribution of **one** token to a diagonal linear recurrence.

    For head $h$ of group $g$, with state $S$ of shape `(key, value)`,

    $$S_t = e^{a_t} \odot S_{t-1} + k_t v_t^\top, \qquad y_t = S_t^\top q_t .$$

    **Arguments:**

    - `log_decay`: $a$, the logarithm of the decay, with a real part of at most 0. Its shape is `(heads, 1)` for one
        scalar per head or `(heads, key)` for one per key channel. It is float32, or float64, complex64 or complex128.
    - `write`: $k$, shape `(groups, key)`; head `h` uses group `h // (heads // groups)` (`B` in Mamba-2).
    - `value`: $v$, shape `(heads, value)` (`dt * x` in Mamba-2).
    - `read`: $q$, shape `(groups, key)` (`C` in Mamba-2).
    - `bonus`: $u$, shape `(heads, key)`, or `None`. With a bonus the state is read **before** the update, and the
        current token contributes through $u$: $y_t = (S_{t-1} + (u \odot k_t) v_t^\top)^\top q_t$ (RWKV-6,
        arXiv 2404.05892).

    A token may write several times, $\sum_r k_{t,r} v_{t,r}^\top$: `write` then has the shape `(groups, rank, key)`,
    and `value` has `(heads, rank, value)`. A token may also read several times: with `read` of shape
    `(groups, reads, key)`, the output is `(heads, reads, value)`.

    NumPy arrays are accepted. Shapes and dtypes are checked on construction. Under `jax.jit` this happens at trace time
    and costs nothing. The same class represents many tokens, with a leading `time` axis on every field, as from
    `jax.vmap`.

    **Raises:** `ValueError` naming the field, the axis, the actual and the expected size.
    """

    log_decay: Inexact[Array, " heads #key"]
    write: Inexact[Array, "groups *rank key"]
    value: Inexact[Array, "heads *rank value"]
    read: Inexact[Array, "groups *reads key"]
    bonus: Inexact[Array, "heads key"] | None

    @checks_itself
    def __init__(
        self,
        log_decay: Inexact[ArrayLike, " heads #key"],
        write: Inexact[ArrayLike, "groups *rank key"],
        value: Inexact[ArrayLike, "heads *rank value"],
        read: Inexact[ArrayLike, "groups *reads key"],
        bonus: Inexact[ArrayLike, "heads key"] | None = None,
    ):
        # Checked here rather than in `__check_init__`, so that the message is the same with the type checker on.
        given: tuple[Any, ...] = (log_decay, write, value, read, bonus)
        fields = [jnp.asarray(field) if isinstance(field, np.ndarray) else field for field in given]
        _check(*fields)
        self.log_decay, self.write, self.value, self.read, self.bonus = fields

    def where(self, valid: Valid) -> "Coefficients":
        """These coefficients if `valid` is true, and those of the identity step `S_t = S_{t-1}` if it is false.

        `write` and `read` are zeroed too, so that a NaN in a padded position cannot reach the state.
        """
        return jax.tree.map(lambda array: jnp.where(valid, array, jnp.zeros_like(array)), self)


def _check(log_decay: Any, write: Any, value: Any, read: Any, bonus: Any) -> None:
    _check_array("log_decay", log_decay, "(heads, 1 or key)")
    _check_array("write", write, "(groups, key) or (groups, rank, key)", ndims=(2, 3))
    _check_array("value", value, "(heads, value) or (heads, rank, value)", ndims=(2, 3))
    _check_array("read", read, "(groups, key) or (groups, reads, key)", ndims=(2, 3))
    if jnp.finfo(log_decay.dtype).bits < 32:
        raise ValueError(
            f"`log_decay` must be at least float32, got {log_decay.dtype}: sums of low-precision logarithms lose the "
            "state. Compute it from `x.astype(jnp.float32)`."
        )
    if write.ndim != value.ndim:
        raise ValueError(
            f"`write` and `value` must both have the axis rank or both lack it, got shapes {write.shape} and "
            f"{value.shape} for one token. The framework adds the time and batch axes itself."
        )
    heads, groups, key = value.shape[0], write.shape[0], write.shape[-1]
    _expect("log_decay", log_decay, 0, "heads", (heads,), "the heads of `value`")
    _expect("log_decay", log_decay, 1, "key", (1, key), "one decay per head, or one per key channel of `write`")
    _expect("read", read, 0, "groups", (groups,), "the groups of `write`")
    _expect("read", read, read.ndim - 1, "key", (key,), "the key channels of `write`")
    if write.ndim == 3:
        _expect("value", value, 1, "rank", (write.shape[1],), "the rank of `write`")
    if groups == 0 or heads % groups != 0:
        raise ValueError(
            f"axis 0 (groups) of `write` must divide the {heads} heads of `value`, got {groups} in shape {write.shape}."
        )
    if bonus is not None:
        _check_array("bonus", bonus, "(heads, key)")
        _expect("bonus", bonus, 0, "heads", (heads,), "the heads of `value`")
        _expect("bonus", bonus, 1, "key", (key,), "the key channels of `write`")


def _check_array(name: str, array: Any, axes: str, *, ndims: tuple[int, ...] = (2,)) -> None:
    if not isinstance(array, jax.Array):
        raise ValueError(f"`{name}` must be a JAX or NumPy array with axes {axes}, got {type(array).__name__}.")
    if array.ndim not in ndims:
        remedy = "The framework adds the time and batch axes itself."
        if name == "log_decay" and array.ndim == 1:
            remedy = "Append `[:, None]` for one decay per head."
        raise ValueError(f"`{name}` must have the axes {axes} of one token, got shape {array.shape}. {remedy}")
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise ValueError(f"`{name}` must be floating point or complex, got {array.dtype}.")


def _expect(name: str, array: Array, axis: int, axis_name: str, sizes: tuple[int, ...], why: str) -> None:
    if array.shape[axis] not in sizes:
        expected = " or ".join(str(size) for size in dict.fromkeys(sizes))
        raise ValueError(
            f"axis {axis} ({axis_name}) of `{name}` must be {expected} ({why}), got {array.shape[axis]} in shape "
            f"{array.shape}."
        )
