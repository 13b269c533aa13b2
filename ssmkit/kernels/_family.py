"""What a kernel family is, and which one suits a recurrence."""

from collections.abc import Callable
from typing import NamedTuple

import einops
import jax.numpy as jnp
from jaxtyping import Array

from ._chunk import Chunk, per_head


class Family(NamedTuple):
    """One chunk, described by three functions that a schedule combines. With the state `S` before a chunk `c`,

        outputs  = within(c) + carried(c, S)
        S        = decay * S + increment            where decay, increment = summary(c)

    States and outputs may have any layout the family likes, outputs with leading rows and a trailing `value`.
    """

    within: Callable[[Chunk], Array]
    carried: Callable[[Chunk, Array], Array]
    summary: Callable[[Chunk], tuple[Array, Array]]
    enter: Callable[[Array, int], Array]  # the public state layout and the number of groups, to the family's layout
    leave: Callable[[Array], Array]  # and back


def read_before_update(family: Family) -> Family:
    """The same family for coefficients with a bonus: the chunk is read one token late, and the token itself apart."""

    def within(chunk: Chunk) -> Array:
        outputs = family.within(chunk.one_token_late())
        return outputs + jnp.reshape(_bonus_outputs(chunk), outputs.shape)

    return family._replace(within=within, carried=lambda chunk, state: family.carried(chunk.one_token_late(), state))


def _bonus_outputs(chunk: Chunk) -> Array:
    """What a token that reads before the update sees of itself: `(read, (bonus * write) value^T)`."""
    assert chunk.bonus is not None
    tokens = lambda array: einops.rearrange(array, "(t r) h x -> t r h x", t=chunk.log_decay.shape[0])  # noqa: E731
    read, write = tokens(per_head(chunk.read, chunk)), tokens(per_head(chunk.write, chunk))
    scores = jnp.sum(read[:, :, None] * (chunk.bonus[:, None] * write)[:, None], axis=-1)  # time, reads, rank, heads
    return einops.rearrange(jnp.einsum("tqrh,trhv->tqhv", scores, tokens(chunk.value)), "t q h v -> (t q) h v")
