r"""Family K1: one scalar decay per head. Everything is a matrix product (the SSD form, arXiv 2405.21060, section 6).

With the segment sums $D_{ij} = \sum_{j<s\le i} a_s$ of one chunk,

    within    y_i = sum_{j<=i} (q_i . k_j) exp(D_ij) v_j
    carried   y_i = exp(a_1 + .. + a_i) q_i^T S
    summary   S'  = exp(a_1 + .. + a_Q) S + sum_j k_j (exp(a_{j+1} + .. + a_Q) v_j)^T

Every exponent is at most 0. `read` and `write` stay per group: heads are split into `(group, member)` and the matrix
products share the group's operand. States are laid out `(group, key, member, value)` here, so that a group's members
form one matrix.
"""

import einops
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._chunk import Chunk
from ._family import Family
from ._segment import segment_sums, suffix_sums


def _members(array: Inexact[Array, "rows heads _"], groups: int) -> Inexact[Array, "rows groups members _"]:
    return einops.rearrange(array, "t (g m) x -> t g m x", g=groups)


def _log_decay(chunk: Chunk) -> Inexact[Array, "groups members time"]:
    return einops.rearrange(chunk.log_decay, "t (g m) 1 -> g m t", g=chunk.groups)


def _within(chunk: Chunk) -> Array:
    decay = jnp.exp(segment_sums(_log_decay(chunk)))
    decay = einops.repeat(decay, "g m i j -> g m (i q) (j r)", q=chunk.reads_per_token, r=chunk.rank)
    scores = jnp.einsum("igk,jgk->gij", chunk.read, chunk.write)
    return jnp.einsum("gmij,jgmv->igmv", scores[:, None] * decay, _members(chunk.value, chunk.groups))


def _carried(chunk: Chunk, state: Array) -> Array:
    decay = jnp.exp(jnp.cumsum(_log_decay(chunk), axis=-1))
    outputs = jnp.einsum("igk,gkmv->igmv", chunk.read, state)
    return einops.repeat(decay, "g m i -> (i q) g m 1", q=chunk.reads_per_token) * outputs


def _summary(chunk: Chunk) -> tuple[Array, Array]:
    log_decay = _log_decay(chunk)
    until_end = einops.repeat(jnp.exp(suffix_sums(log_decay)), "g m j -> (j r) g m 1", r=chunk.rank)
    increment = jnp.einsum("jgk,jgmv->gkmv", chunk.write, until_end * _members(chunk.value, chunk.groups))
    decay = jnp.exp(jnp.sum(log_decay, axis=-1))
    return einops.rearrange(decay, "g m -> g 1 m 1"), increment


def _enter(state: Inexact[Array, "heads key value"], groups: int) -> Array:
    return einops.rearrange(state, "(g m) k v -> g k m v", g=groups)


def _leave(state: Array, shape: tuple[int, ...]) -> Inexact[Array, "heads key value"]:
    return einops.rearrange(state, "g k m v -> (g m) k v")


SCALAR_DECAY = Family(
    name="K1, one decay per head", within=_within, carried=_carried, summary=_summary, enter=_enter, leave=_leave
)
