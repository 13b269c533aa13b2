r"""Family K3: states that are no matrices, `value` or `key` being 1 (Mamba-1, S5, LRU, RG-LRU).

There is no matrix product to gain, so where chunks come in order so do their tokens: nothing is computed twice. Chunks
side by side each need an associative scan over their tokens' affine maps $S \mapsto d S + b$, with the product
$(d_1, b_1) \cdot (d_2, b_2) = (d_1 d_2, d_2 b_1 + b_2)$. Either way decays are only ever multiplied, so any decay is
safe; and between chunks only the state is kept, so memory does not grow with `time * key`.

States are laid out `(key, value, heads)` here: heads are many, and neighbours in memory are computed together.
"""

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._chunk import Chunk, bonus_outputs, per_head
from ._family import Family


def _maps(chunk: Chunk) -> tuple[Array, Array]:
    """Decay `(time, #key, 1, heads)` and increment `(time, key, value, heads)` of every token."""
    write = einops.rearrange(per_head(chunk.write, chunk), "(t r) h k -> t r k 1 h", r=chunk.rank)
    value = einops.rearrange(chunk.value, "(t r) h v -> t r 1 v h", r=chunk.rank)
    decays = jnp.exp(einops.rearrange(chunk.log_decay, "t h k -> t k 1 h"))
    return decays, jnp.sum(write * value, axis=1)


def _read(chunk: Chunk, states: Inexact[Array, "time key value heads"]) -> Inexact[Array, "reads heads value"]:
    read = einops.rearrange(per_head(chunk.read, chunk), "(t q) h k -> t q k 1 h", q=chunk.reads_per_token)
    return einops.rearrange(jnp.sum(read * states[:, None], axis=2), "t q v h -> (t q) h v")


def _in_order(chunk: Chunk, state: Inexact[Array, "key value heads"]) -> tuple[Array, Array]:
    def token(state, maps):
        decay, increment = maps
        new = decay * state + increment
        return new, new if chunk.bonus is None else state

    state, seen = jax.lax.scan(token, state, _maps(chunk))
    outputs = _read(chunk, seen)
    return outputs if chunk.bonus is None else outputs + bonus_outputs(chunk), state


def _since_start(chunk: Chunk) -> tuple[Array, Array]:
    """The decay since the chunk's start and the state that starts from zero there, shaped as `_maps`."""
    return jax.lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), _maps(chunk))


def _within(chunk: Chunk) -> Array:
    return _read(chunk, _since_start(chunk)[1])


def _carried(chunk: Chunk, state: Inexact[Array, "key value heads"]) -> Array:
    return _read(chunk, _since_start(chunk)[0] * state[None])


def _summary(chunk: Chunk) -> tuple[Array, Array]:
    decay, states = _since_start(chunk)
    return decay[-1], states[-1]


ELEMENTWISE = Family(
    within=_within,
    carried=_carried,
    summary=_summary,
    enter=lambda state, groups: einops.rearrange(state, "h k v -> k v h"),
    leave=lambda state: einops.rearrange(state, "k v h -> h k v"),
    in_order=_in_order,
    cache_chunk_size=16,
)
