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

from .._coefficients import Coefficients
from ._schedule import Family
from ._segment import segment_sums, suffix_sums


def _members(array: Inexact[Array, "time heads _"], groups: int) -> Inexact[Array, "time groups members _"]:
    return einops.rearrange(array, "t (g m) x -> t g m x", g=groups)


def _log_decay(chunk: Coefficients) -> Inexact[Array, "groups members time"]:
    return einops.rearrange(chunk.log_decay, "t (g m) 1 -> g m t", g=chunk.write.shape[-2])


def _within(chunk: Coefficients) -> Array:
    groups = chunk.write.shape[-2]
    decay = jnp.exp(segment_sums(_log_decay(chunk)))  # g m i j
    scores = jnp.einsum("igk,jgk->gij", chunk.read, chunk.write)
    weights = scores[:, None] * decay
    return jnp.einsum("gmij,jgmv->igmv", weights, _members(chunk.value, groups))


def _carried(chunk: Coefficients, state: Array) -> Array:
    decay = jnp.exp(jnp.cumsum(_log_decay(chunk), axis=-1))
    outputs = jnp.einsum("igk,gkmv->igmv", chunk.read, state)
    return einops.rearrange(decay, "g m i -> i g m 1") * outputs


def _summary(chunk: Coefficients) -> tuple[Array, Array]:
    groups = chunk.write.shape[-2]
    log_decay = _log_decay(chunk)
    until_end = einops.rearrange(jnp.exp(suffix_sums(log_decay)), "g m j -> j g m 1")
    increment = jnp.einsum("jgk,jgmv->gkmv", chunk.write, until_end * _members(chunk.value, groups))
    decay = jnp.exp(jnp.sum(log_decay, axis=-1))
    return einops.rearrange(decay, "g m -> g 1 m 1"), increment


SCALAR_DECAY = Family(within=_within, carried=_carried, summary=_summary)


def enter(state: Inexact[Array, "heads key value"], groups: int) -> Array:
    """From the public state layout to this family's."""
    return einops.rearrange(state, "(g m) k v -> g k m v", g=groups)


def leave(state: Array) -> Inexact[Array, "heads key value"]:
    """From this family's state layout to the public one."""
    return einops.rearrange(state, "g k m v -> (g m) k v")
