"""Sequences cut into chunks, and joined again."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from ._platform import TILE, platform


# If tokens lie along the lanes of a TPU's tiles, a chunk of whole tiles is cut out by copying tiles, but a reshape that
# splits the axis permutes what is in them. Many chunks make a long program.
_FEW = 32


def cut(array: Shaped[Array | np.ndarray, "time ..."], size: int) -> Shaped[Array, "chunks size ..."]:
    """Cut a sequence into chunks of `size` tokens, which divides the number of tokens."""
    chunks = array.shape[0] // size
    if _by_tile(chunks, size):
        return jnp.stack(jnp.split(array, chunks))
    return jnp.reshape(jnp.asarray(array), (chunks, size, *array.shape[1:]))


def joined(chunks: Shaped[Array, "chunks size ..."]) -> Shaped[Array, "time ..."]:
    """The sequence of the chunks."""
    if _by_tile(*chunks.shape[:2]):
        return jnp.concatenate([chunk[0] for chunk in jnp.split(chunks, len(chunks))])
    return jnp.reshape(chunks, (-1, *chunks.shape[2:]))


def _by_tile(chunks: int, size: int) -> bool:
    return platform() == "tpu" and 1 < chunks <= _FEW and size % TILE == 0
