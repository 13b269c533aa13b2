"""The axis legend: the only place where the names used in shape annotations are defined.

| name     | meaning                                                                |
|----------|------------------------------------------------------------------------|
| `time`   | tokens of one sequence, oldest first                                   |
| `batch`  | sequences; only the generation engine and training have this axis      |
| `heads`  | independent recurrences of one layer                                   |
| `groups` | heads that share `write` and `read`; `groups` divides `heads`          |
| `key`    | rows of a head's state (Mamba's state size N)                          |
| `value`  | columns of a head's state (Mamba's head dimension P)                   |
| `width`  | features of the residual stream (`hidden_size`)                        |
| `channel`| features inside a mixer                                                |
| `vocab`  | token ids that can be produced; padding rows of the embedding excluded |

A leading `*axes` stands for any number of leading axes, none included. Inside einsum equations:
`t` time, `i`/`j` positions inside one chunk (target/source), `h` head = (`g` group, `m` member of the group),
`k` key, `v` value.
"""

from typing import TypeAlias

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, DTypeLike, Float, Inexact, Int, PRNGKeyArray as PRNGKeyArray

from ._config import check_environment


check_environment()  # every module that computes imports this one

Token: TypeAlias = Int[Array, ""]
Tokens: TypeAlias = Int[Array, " time"]
Length: TypeAlias = Int[Array, ""] | int
Valid: TypeAlias = Bool[Array, ""] | bool
Logits: TypeAlias = Float[Array, " vocab"]
State: TypeAlias = Inexact[Array, "heads key value"]


def check_length(length: Length, time: int) -> Int[Array, ""]:
    """`length` as an int32 scalar in `[0, time]`.

    **Raises:** `ValueError` when it is not an integer, or is known (not traced) and outside `[0, time]`. A traced one
    that is outside is clipped.
    """
    array = jnp.asarray(length)
    if array.ndim != 0 or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"`length` must be one integer, got {array.dtype} of shape {array.shape}.")
    if isinstance(array, Tracer):
        return jnp.clip(array.astype(jnp.int32), 0, time)
    if not 0 <= int(array) <= time:
        raise ValueError(f"`length` must lie in [0, {time}], the time axis of the inputs, got {int(array)}.")
    return array.astype(jnp.int32)


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """The precision of everything that is not a projection's operand: float32, or `dtype` if that is wider."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)
