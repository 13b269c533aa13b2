r"""Family K3: states that are vectors, with `value` or `key` of size 1 (Mamba-1, S5, LRU, RG-LRU).

Matrix products would bring no gain here. In the serial schedule, tokens run one after the other, and nothing is
computed twice. Each token computes its increment, adds it and reads in one pass over the state. Only the decays have
size `time * key` in memory, and only if they change from token to token. In the parallel schedule, the
tokens of a short chunk follow one another in the program, without a loop, and chunks are computed side by side. A long
chunk needs an associative scan over its tokens' affine maps $S \mapsto e^{a} S + b$, with the product
$(a_1, b_1) \cdot (a_2, b_2) = (a_1 + a_2,\; e^{a_2} b_1 + b_2)$. The states of all its tokens then exist at once, and a
TPU takes hundreds of times as long, because it moves every other token. In all of them exponents are at most 0, so any
decay is safe. The backward pass keeps only the state between chunks.

The layout of states is `(element, heads)`, where elements are keys or values: heads are many, and neighbours in memory
are computed together. Axes of size 1 are left out, because XLA's CPU backend of jax 0.10 walks arrays with such axes
five times slower.
"""

import functools
import itertools
from collections.abc import Iterator

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._chunk import Chunk, Tokens, per_head
from ._decay import Decay, decay
from ._family import Family


# So many tokens of a chunk are computed in a row, and more by an associative scan.
_FEW = 32


def _heads_last(array: Inexact[Array, "rows heads x"]) -> Inexact[Array, "rows x heads"]:
    return jnp.swapaxes(array, 1, 2)


def _rows(array: Inexact[Array, "rows groups key"], chunk: Chunk) -> Inexact[Array, "rows key #heads"]:
    """Rows per head, or one row for all heads."""
    return _heads_last(array if chunk.groups == 1 else per_head(array, chunk))


# In order.


def _in_order(tokens: Tokens, state: Inexact[Array, "element heads"]) -> tuple[Array, Array]:
    made = tokens.coefficients
    time, heads = made.value.shape[:2]

    def rows(array: Array) -> Inexact[Array, "time rows x #heads"]:
        """Rows per write or read, with one number per head, or one number for all heads."""
        array = array if array.ndim == 4 else array[:, :, None]
        repeated = einops.repeat(
            array, "t g r x -> t r x (g m)", m=1 if array.shape[1] == 1 else heads // array.shape[1]
        )
        return repeated

    fields = {
        "decay": decay(jnp.swapaxes(made.log_decay, 1, 2)),
        "write": rows(made.write),
        "value": rows(made.value),
        "read": rows(made.read),
        "bonus": None if made.bonus is None else jnp.swapaxes(made.bonus, 1, 2),
        "valid": tokens.valid,
        "start": tokens.starts if made.bonus is not None else None,
    }
    constant = {name for name, field in fields.items() if {len(leaf) for leaf in jax.tree.leaves(field)} != {time}}
    shared = {name: jax.tree.map(lambda leaf: leaf[0], fields.pop(name)) for name in constant}
    state, outputs = jax.lax.scan(lambda state, each: _token(state, **each, **shared), state, fields)
    outputs = einops.rearrange(outputs, "t q v h -> (t q) h v")
    if tokens.valid is not None:
        valid = einops.repeat(tokens.valid, "t -> (t q) 1 1", q=outputs.shape[0] // time)
        outputs = jnp.where(valid, outputs, jnp.zeros_like(outputs))
    return outputs, state


def _token(state: Inexact[Array, "element heads"], *, decay: Decay, write, value, read, bonus, valid, start):
    """The state after one token, and its outputs, `(reads, value, heads)`."""
    increment = functools.reduce(jnp.add, [write[r] * value[r] for r in range(write.shape[0])])
    new = decay(state, increment)
    if valid is not None:
        new = jnp.where(valid, new, state)
    before = state if start is None else jnp.where(start, jnp.zeros_like(state), state)
    seen = new if bonus is None else before + bonus * increment
    outputs = [read[q] * seen for q in range(read.shape[0])]
    if read.shape[1] > 1:
        outputs = [jnp.sum(output, axis=0, keepdims=True) for output in outputs]
    return new, jnp.stack(outputs)


# Side by side.


def _maps(chunk: Chunk) -> tuple[Array, Array]:
    """The log-decay `(time, #element, heads)` and increment `(time, element, heads)` of every token."""
    increments = _rows(chunk.write, chunk) * _heads_last(chunk.value)
    if chunk.rank > 1:
        increments = einops.reduce(increments, "(t r) n h -> t n h", "sum", r=chunk.rank)
    return _heads_last(chunk.log_decay), increments


def _outputs(chunk: Chunk, states: Inexact[Array, "time element heads"]) -> Inexact[Array, "reads heads value"]:
    states = einops.repeat(states, "t n h -> (t q) n h", q=chunk.reads_per_token)
    outputs = _rows(chunk.read, chunk) * states
    if chunk.read.shape[-1] > 1:
        outputs = jnp.sum(outputs, axis=1, keepdims=True)
    return _heads_last(outputs)


def _read(chunk: Chunk, state: Inexact[Array, "element heads"]) -> Inexact[Array, "reads heads value"]:
    log_decay, increments = _maps(chunk)
    if len(increments) > _FEW:
        states = jax.lax.associative_scan(_one_after_the_other, (log_decay, increments))[1]
        return _outputs(chunk, states) + _outputs(chunk, jnp.exp(jnp.cumsum(log_decay, axis=0)) * state[None])
    reads = einops.rearrange(_rows(chunk.read, chunk), "(t q) n h -> t q n h", q=chunk.reads_per_token)
    outputs = []
    for before, own, read in zip(itertools.accumulate(log_decay), _in_a_row(log_decay, increments), reads, strict=True):
        seen = read * (own + jnp.exp(before) * state)[None]
        outputs.append(jnp.sum(seen, axis=1, keepdims=True) if read.shape[1] > 1 else seen)
    return _heads_last(jnp.concatenate(outputs))


def _increment(chunk: Chunk) -> Inexact[Array, "element heads"]:
    log_decay, increments = _maps(chunk)
    if len(increments) > _FEW:
        return jax.lax.associative_scan(_one_after_the_other, (log_decay, increments))[1][-1]
    *_, last = _in_a_row(log_decay, increments)
    return last


def _one_after_the_other(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return a[0] + b[0], jnp.exp(b[0]) * a[1] + b[1]


def _in_a_row(log_decay: Array, increments: Array) -> Iterator[Inexact[Array, "element heads"]]:
    """The states of a chunk that starts from zero."""
    state = increments[0]
    yield state
    for a, b in zip(log_decay[1:], increments[1:], strict=True):
        state = jnp.exp(a) * state + b
        yield state


ELEMENTWISE = Family(
    name="K3, elementwise",
    read=_read,
    increment=_increment,
    beside=lambda per_key, chunk: per_key.T,
    enter=lambda state, groups: einops.rearrange(state, "h k v -> (k v) h"),
    leave=lambda state, shape: jnp.reshape(state.T, shape),
    in_order=_in_order,
)
