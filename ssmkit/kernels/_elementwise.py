r"""Family K3: states that are no matrices, `value` or `key` being 1 (Mamba-1, S5, LRU, RG-LRU).

There is no matrix product to gain; a chunk is an associative scan over its tokens' affine maps $S \mapsto d S + b$,
with the product $(d_1, b_1) \cdot (d_2, b_2) = (d_1 d_2, d_2 b_1 + b_2)$. Decays are only ever multiplied, so any
decay is safe. Between chunks only the state is kept, so memory does not grow with `time * key`.
"""

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._chunk import Chunk, per_head
from ._family import Family


def _scan(chunk: Chunk) -> tuple[Inexact[Array, "time heads #key 1"], Inexact[Array, "time heads key value"]]:
    """The decay since the chunk's start, and the state that starts from zero there."""
    write = einops.rearrange(per_head(chunk.write, chunk), "(t r) h k -> t r h k 1", r=chunk.rank)
    value = einops.rearrange(chunk.value, "(t r) h v -> t r h 1 v", r=chunk.rank)
    increments = jnp.sum(write * value, axis=1)
    decays = jnp.exp(chunk.log_decay)[..., None]
    return jax.lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (decays, increments))


def _read(chunk: Chunk, states: Inexact[Array, "time heads key value"]) -> Inexact[Array, "reads heads value"]:
    read = einops.rearrange(per_head(chunk.read, chunk), "(t q) h k -> t q h k 1", q=chunk.reads_per_token)
    return einops.rearrange(jnp.sum(read * states[:, None], axis=-2), "t q h v -> (t q) h v")


def _within(chunk: Chunk) -> Array:
    return _read(chunk, _scan(chunk)[1])


def _carried(chunk: Chunk, state: Inexact[Array, "heads key value"]) -> Array:
    return _read(chunk, _scan(chunk)[0] * state[None])


def _summary(chunk: Chunk) -> tuple[Array, Array]:
    decay, states = _scan(chunk)
    return decay[-1], states[-1]


ELEMENTWISE = Family(
    within=_within,
    carried=_carried,
    summary=_summary,
    enter=lambda state, groups: state,
    leave=lambda state: state,
)
