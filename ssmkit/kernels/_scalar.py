r"""Family K1: one scalar decay per head. Everything is a matrix product (the SSD form, arXiv 2405.21060, section 6).

With the decay $L_{ij} = \exp(a_{j+1} + .. + a_i)$ from token j to token i of one chunk,

    within    y_i = sum_{j<=i} (q_i . k_j) L_ij v_j
    carried   y_i = exp(a_1 + .. + a_i) q_i^T S
    increment sum_j k_j (exp(a_{j+1} + .. + a_Q) v_j)^T

Every exponent is at most 0. The code treats the heads of one group, which share `read` and `write`, with states of
layout `(key, heads, value)`. All heads' reads of the state are then one matrix product, and so are all their writes.
Groups are mapped over. A single group is not, because XLA's CPU backend copies arrays for an axis of size 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._products import product
from ._chunk import Chunk
from ._family import Family
from ._pairwise_decays import pairwise_decays, suffix_sums


class _Group(NamedTuple):
    """The part of a chunk that belongs to the heads of one group."""

    log_decay: Inexact[Array, "time heads"]
    write: Inexact[Array, "writes key"]
    value: Inexact[Array, "writes heads value"]
    read: Inexact[Array, "reads key"]


def _by_group(function: Callable[..., Array], chunk: Chunk, *state: Array, out: int) -> Array:
    """Apply a function of one group to each. Groups are the second axis of all rows, and the first of a state.

    **Arguments:** the function, the chunk, the state if the function takes one, and the axis of groups in its result.
    """
    if chunk.groups == 1:
        return function(_Group(chunk.log_decay[..., 0], chunk.write[:, 0], chunk.value, chunk.read[:, 0]), *state)
    members = lambda array: einops.rearrange(array, "t (g m) x -> t g m x", g=chunk.groups)
    groups = _Group(members(chunk.log_decay)[..., 0], chunk.write, members(chunk.value), chunk.read)
    return jax.vmap(function, in_axes=(1, *[0] * len(state)), out_axes=out)(groups, *state)


def _decays(group: _Group) -> Inexact[Array, "heads time"]:
    return jnp.swapaxes(group.log_decay, 0, 1)


def _rows(per_token: Inexact[Array, "heads time"], rows: int) -> Inexact[Array, "rows heads 1"]:
    return einops.repeat(per_token, "m t -> (t r) m 1", r=rows // per_token.shape[1])


def _within(group: _Group) -> Inexact[Array, "reads heads value"]:
    decay = pairwise_decays(_decays(group))
    reads, writes = group.read.shape[0] // decay.shape[-1], group.write.shape[0] // decay.shape[-1]
    if (reads, writes) != (1, 1):
        decay = einops.repeat(decay, "m i j -> m (i q) (j r)", q=reads, r=writes)
    scores = product("ik,jk->ij", group.read, group.write)
    return product("mij,jmv->imv", scores[None] * decay, group.value)


def _carried(group: _Group, state: Inexact[Array, "key heads value"]) -> Inexact[Array, "reads heads value"]:
    decay = jnp.exp(jnp.cumsum(_decays(group), axis=-1))
    return _rows(decay, group.read.shape[0]) * product("ik,kmv->imv", group.read, state)


def _increment(group: _Group) -> Inexact[Array, "key heads value"]:
    until_end = jnp.exp(suffix_sums(_decays(group)))
    return product("jk,jmv->kmv", group.write, _rows(until_end, group.write.shape[0]) * group.value)


def _beside(per_head: Inexact[Array, "heads 1"], groups: int) -> Array:
    if groups == 1:
        return einops.rearrange(per_head, "m 1 -> 1 m 1")
    return einops.rearrange(per_head, "(g m) 1 -> g 1 m 1", g=groups)


def _enter(state: Inexact[Array, "heads key value"], groups: int) -> Array:
    if groups == 1:
        return einops.rearrange(state, "m k v -> k m v")
    return einops.rearrange(state, "(g m) k v -> g k m v", g=groups)


def _leave(state: Array, shape: tuple[int, ...]) -> Inexact[Array, "heads key value"]:
    return einops.rearrange(state, "k m v -> m k v" if state.ndim == 3 else "g k m v -> (g m) k v")


SCALAR_DECAY = Family(
    name="K1, one decay per head",
    within=lambda chunk: _by_group(_within, chunk, out=1),
    carried=lambda chunk, state: _by_group(_carried, chunk, state, out=1),
    increment=lambda chunk: _by_group(_increment, chunk, out=0),
    beside=_beside,
    enter=_enter,
    leave=_leave,
)
