"""What the kernel families compute with: a chunk of tokens, in which writes and reads are rows of matrices."""

from typing import NamedTuple

import einops
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._coefficients import Coefficients


class Chunk(NamedTuple):
    """The tokens of one chunk. A token's `rank` writes are neighbouring rows, and so are its reads.

    With one write and one read per token, the usual case, rows are tokens.
    """

    log_decay: Inexact[Array, "time heads #key"]
    write: Inexact[Array, "writes groups key"]
    value: Inexact[Array, "writes heads value"]
    read: Inexact[Array, "reads groups key"]

    @property
    def groups(self) -> int:
        """Heads divided by the heads that share a group's `write` and `read`."""
        return self.write.shape[-2]

    @property
    def rank(self) -> int:
        """Writes per token."""
        return self.write.shape[-3] // self.log_decay.shape[-3]

    @property
    def reads_per_token(self) -> int:
        """Reads per token."""
        return self.read.shape[-3] // self.log_decay.shape[-3]


def split(coefficients: Coefficients, chunk_size: int) -> Chunk:
    """Cut the leading `time` axis into `(chunks, chunk_size)`, filling up with identity steps (all zeros)."""

    def cut(array: Array) -> Array:
        padding = -array.shape[0] % chunk_size
        array = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return jnp.reshape(array, (array.shape[0] // chunk_size, chunk_size, *array.shape[1:]))

    def rows(array: Array) -> Array:
        array = cut(array)
        return einops.rearrange(array, "n t h r x -> n (t r) h x") if array.ndim == 5 else array

    return Chunk(
        cut(coefficients.log_decay), rows(coefficients.write), rows(coefficients.value), rows(coefficients.read)
    )


def join(outputs: Array, coefficients: Coefficients) -> Inexact[Array, "time heads *reads value"]:
    """The outputs of all chunks, `(chunks, reads, ..., value)` with any axes that flatten to the heads, by token."""
    time, heads = coefficients.value.shape[:2]
    value = outputs.shape[-1]
    if coefficients.read.ndim == 3:
        return jnp.reshape(outputs, (-1, heads, value))[:time]
    reads = coefficients.read.shape[2]
    return jnp.swapaxes(jnp.reshape(outputs, (-1, reads, heads, value)), 1, 2)[:time]
