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
from typing import NamedTuple

import einops
import jax.numpy as jnp
from jaxtyping import Array

from ._chunk import Chunk, per_head
from ._decay import Decay, decay, directions, rotation, within_turn


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


class Whole(NamedTuple):
    """The log-decay of a state over many tokens. The steps of a complex one, whole numbers in floats, are apart."""

    log_decay: Array
    steps: Array | None

    def decay(self) -> Decay:
        """The decay."""
        return decay(self.log_decay, self.steps)


def whole(chunk: Chunk) -> Whole:
    """The log-decay over a chunk."""
    if not jnp.iscomplexobj(chunk.log_decay):
        return Whole(_sum(chunk.log_decay), None)
    steps, log_decay = directions(chunk.log_decay)
    return Whole(_sum(log_decay), jnp.sum(steps, axis=0))


def all_of(parts: Whole) -> Whole:
    """The log-decay over all parts, along the leading axis.

    Angles of a hundred thousand tokens are many turns. Sums of few are split into directions and small angles again, so
    that no digit is lost.
    """
    log_decay, steps = parts
    while log_decay.shape[0] > 1:
        log_decay = _by_halves(log_decay)
        if steps is not None:
            more, log_decay = directions(log_decay)
            steps = within_turn(_by_halves(steps) + more)
    return Whole(log_decay[0], None if steps is None else steps[0])


def _sum(array: Array) -> Array:
    """The sum by halves, so that few roundings follow one another."""
    while array.shape[0] > 1:
        array = _by_halves(array)
    return jnp.sum(array, axis=0)


def _by_halves(array: Array) -> Array:
    half = array.shape[0] // 2
    return jnp.concatenate([array[:half] + array[half : 2 * half], array[2 * half :]])
