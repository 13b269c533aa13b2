r"""Complex decays whose rotation is moved to reads and writes.

Large sums of angles over a chunk lose digits. The directions of `_decay.py` are whole numbers, whose sums are exact.
With the directions since the chunk's start, $R_t = e^{i(\theta_1 + .. + \theta_t)}$, we have $S_t = R_t \tilde S_t$,
where

$$\tilde S_t = e^{a_t - i\theta_t} \odot \tilde S_{t-1} + \bar R_t k_t v_t^\top, \qquad
y_t = \tilde S_t^\top (R_t q_t).$$

The remaining angles are small, and so are their sums. Directions have no gradients. The gradients of the angles all go
through the remaining log-decay, as exactly as before.
"""

from collections.abc import Callable

import einops
import jax.numpy as jnp
from jaxtyping import Array

from ._chunk import Chunk, per_head
from ._decay import Decay, decay, directions, rotation


def unwound(chunk: Chunk) -> tuple[Chunk, Callable[[Array], Array]]:
    """The same chunk without directions, and a function that turns its outputs, `(rows, ..., value)`, back.

    With one decay per head, values and outputs are turned. With one per key, writes and reads are turned, and every
    head then has its own.
    """
    if not jnp.iscomplexobj(chunk.log_decay):
        return chunk, lambda outputs: outputs
    steps, log_decay = directions(chunk.log_decay)
    turn, _ = rotation(jnp.cumsum(steps, axis=0), log_decay.dtype)
    chunk, back = chunk._replace(log_decay=log_decay), jnp.conj(turn)
    rows = lambda array, count: einops.repeat(array, "t h k -> (t r) h k", r=count)
    at_writes, at_reads = rows(back, chunk.rank), rows(turn, chunk.reads_per_token)
    if log_decay.shape[-1] > 1:
        write, read = at_writes * per_head(chunk.write, chunk), at_reads * per_head(chunk.read, chunk)
        return chunk._replace(write=write, read=read), lambda outputs: outputs

    def turned(outputs: Array) -> Array:
        return jnp.reshape(at_reads * jnp.reshape(outputs, (*at_reads.shape[:2], -1)), outputs.shape)

    return chunk._replace(value=at_writes * chunk.value), turned


def whole(chunk: Chunk) -> tuple[Decay, Array | None]:
    """The decay of the whole chunk, and the direction that is missing in its unwound increment."""
    if not jnp.iscomplexobj(chunk.log_decay):
        return decay(_sum(chunk.log_decay)), None
    steps, log_decay = directions(chunk.log_decay)
    steps = jnp.sum(steps, axis=0)
    return decay(_sum(log_decay), steps), rotation(steps, log_decay.dtype)[0]


def _sum(array: Array) -> Array:
    """The sum by halves, so that few roundings follow one another."""
    while array.shape[0] > 1:
        half = array.shape[0] // 2
        array = jnp.concatenate([array[:half] + array[half : 2 * half], array[2 * half :]])
    return jnp.sum(array, axis=0)
