"""`Chunk`, the input of the kernel families: a chunk of tokens, in which writes and reads are rows of matrices."""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from ._coefficients import Coefficients
from ._precision import product


class Chunk(NamedTuple):
    """The tokens of one chunk. A token's `rank` writes are neighbouring rows, and so are its reads.

    With one write and one read per token, the usual case, rows are tokens.
    """

    log_decay: Inexact[Array, "time heads #key"]
    write: Inexact[Array, "writes groups key"]
    value: Inexact[Array, "writes heads value"]
    read: Inexact[Array, "reads groups key"]
    bonus: Inexact[Array, "time heads key"] | None
    starts: Bool[Array, " time"] | None = None
    """Tokens before which the state is reset to zero: their log-decay is minus infinity."""

    @property
    def groups(self) -> int:
        """The number of groups of heads that share `write` and `read`."""
        return self.write.shape[-2]

    @property
    def rank(self) -> int:
        """The number of writes per token."""
        return self.write.shape[-3] // self.log_decay.shape[-3]

    @property
    def reads_per_token(self) -> int:
        """The number of reads per token."""
        return self.read.shape[-3] // self.log_decay.shape[-3]

    def one_token_late(self) -> "Chunk":
        """Delay writes and decays by one token, so that a read sees the state before its own token.

        The first token gets zeros, the identity step. The last token's writes and decay are dropped. No delayed write
        or decay passes a start.
        """

        def late(array: Array, rows: int) -> Array:
            return jnp.concatenate([jnp.zeros_like(array[:rows]), array[:-rows]])

        log_decay, value = late(self.log_decay, 1), late(self.value, self.rank)
        if self.starts is not None:
            log_decay = forgetting(log_decay, self.starts)
            value = jnp.where(jnp.repeat(self.starts, self.rank)[:, None, None], jnp.zeros_like(value), value)
        return self._replace(log_decay=log_decay, write=late(self.write, self.rank), value=value)


class Tokens(NamedTuple):
    """The tokens of one chunk before masking. Coefficients that all tokens share are stored once."""

    coefficients: Coefficients
    """Coefficients with a leading axis on every field: `time`, or 1 if all tokens share the field. `value` has `time`.

    The log-decay is minus infinity at the starts.
    """
    valid: Bool[Array, " time"] | None
    """True for valid tokens; invalid tokens leave the state unchanged. `None` means that all tokens are valid."""
    starts: Bool[Array, " time"] | None = None
    """Tokens before which the state is reset to zero; `None` means that there are none."""

    def chunk(self) -> Chunk:
        """The chunk with one row per write and read, and with identity steps for invalid tokens."""
        time = self.coefficients.value.shape[0]
        c = jax.tree.map(lambda array: jnp.broadcast_to(array, (time, *array.shape[1:])), self.coefficients)
        if self.valid is not None:
            c = jax.vmap(Coefficients.where)(c, self.valid)

        def rows(array: Array) -> Array:
            return einops.rearrange(array, "t h r x -> (t r) h x") if array.ndim == 4 else array

        return Chunk(c.log_decay, rows(c.write), rows(c.value), rows(c.read), c.bonus, self.starts)


def forgetting(log_decay: Inexact[Array, "#time heads key"], starts: Bool[Array, " time"]) -> Inexact[Array, "..."]:
    """Set the log-decays, of one token or of each, to minus infinity at the starts."""
    return jnp.where(starts[:, None, None], jnp.asarray(-jnp.inf, log_decay.dtype), log_decay)


def per_head(array: Inexact[Array, "rows groups key"], chunk: Chunk) -> Inexact[Array, "rows heads key"]:
    """A view in which every head has its group's row."""
    return einops.repeat(array, "t g k -> t (g m) k", m=chunk.value.shape[1] // chunk.groups)


def bonus_outputs(chunk: Chunk) -> Inexact[Array, "reads heads value"]:
    """A token's own contribution to its output, for reads before the update: `value` times `(read, bonus * write)`."""
    assert chunk.bonus is not None
    tokens = lambda array: einops.rearrange(array, "(t r) h x -> t r h x", t=chunk.log_decay.shape[0])
    read, write = tokens(per_head(chunk.read, chunk)), tokens(per_head(chunk.write, chunk))
    scores = jnp.sum(read[:, :, None] * (chunk.bonus[:, None] * write)[:, None], axis=-1)  # time, reads, rank, heads
    return einops.rearrange(product("tqrh,trhv->tqhv", scores, tokens(chunk.value)), "t q h v -> (t q) h v")
