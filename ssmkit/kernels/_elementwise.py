r"""Family K3: states that are no matrices, `value` or `key` being 1 (Mamba-1, S5, LRU, RG-LRU).

There is no matrix product to gain, so where chunks come in order so do their tokens: nothing is computed twice. Chunks
side by side each need an associative scan over their tokens' affine maps $S \mapsto d S + b$, with the product
$(d_1, b_1) \cdot (d_2, b_2) = (d_1 d_2, d_2 b_1 + b_2)$. Either way decays are only ever multiplied, so any decay is
safe; and for the backward pass only the state between chunks is kept. In order, nothing of size `time * key` exists;
side by side, the states of all tokens do while the scan runs.

States are laid out `(element, heads)` here, the elements being keys or values: heads are many, and neighbours in memory
are computed together. Axes of size 1 are left out, as XLA's CPU backend of jax 0.10 walks arrays with them five times
slower.
"""

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._chunk import Chunk, bonus_outputs, per_head
from ._family import Family


def _heads_last(array: Inexact[Array, "rows heads x"]) -> Inexact[Array, "rows x heads"]:
    return jnp.swapaxes(array, 1, 2)


def _maps(chunk: Chunk) -> tuple[Array, Array]:
    """Decay `(time, #element, heads)` and increment `(time, element, heads)` of every token."""
    increments = _heads_last(per_head(chunk.write, chunk)) * _heads_last(chunk.value)
    if chunk.rank > 1:
        increments = einops.reduce(increments, "(t r) n h -> t n h", "sum", r=chunk.rank)
    return jnp.exp(_heads_last(chunk.log_decay)), increments


def _read(chunk: Chunk, states: Inexact[Array, "time element heads"]) -> Inexact[Array, "reads heads value"]:
    states = einops.repeat(states, "t n h -> (t q) n h", q=chunk.reads_per_token)
    outputs = _heads_last(per_head(chunk.read, chunk)) * states
    if chunk.read.shape[-1] > 1:
        outputs = jnp.sum(outputs, axis=1, keepdims=True)
    return _heads_last(outputs)


def _in_order(chunk: Chunk, state: Inexact[Array, "element heads"]) -> tuple[Array, Array]:
    def token(state, maps):
        decay, increment = maps
        new = decay * state + increment
        return new, new if chunk.bonus is None else state

    state, seen = jax.lax.scan(token, state, _maps(chunk))
    outputs = _read(chunk, seen)
    return outputs if chunk.bonus is None else outputs + bonus_outputs(chunk), state


def _since_start(chunk: Chunk) -> tuple[Array, Array]:
    """The decay since the chunk's start and the state that starts from zero there, shaped as by `_maps`."""
    return jax.lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), _maps(chunk))


def _within(chunk: Chunk) -> Array:
    return _read(chunk, _since_start(chunk)[1])


def _carried(chunk: Chunk, state: Inexact[Array, "element heads"]) -> Array:
    return _read(chunk, _since_start(chunk)[0] * state[None])


def _summary(chunk: Chunk) -> tuple[Array, Array]:
    decay, states = _since_start(chunk)
    return decay[-1], states[-1]


ELEMENTWISE = Family(
    name="K3, elementwise",
    within=_within,
    carried=_carried,
    summary=_summary,
    enter=lambda state, groups: einops.rearrange(state, "h k v -> (k v) h"),
    leave=lambda state, shape: jnp.reshape(state.T, shape),
    in_order=_in_order,
)
