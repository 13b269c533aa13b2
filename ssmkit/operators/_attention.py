"""Softmax attention as an operator. Its state holds keys and values of earlier tokens; `reserve` makes its room."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._construction import check_sizes, positive
from .._extent import CheckedExtent, Extent, extent_of
from .._sharding import sharded_by_xla, undivided
from .._slices import AXIS, Exchange, in_slices, is_spread
from .._types import Valid, at_least_float32, check_valid, checks_itself, shown, whole
from ._attend import Scoring, Tokens, attend_to_seen, grouped, ungrouped
from ._attention_state import LOST, AttentionState, with_room
from ._checks import many_tokens, one_token
from ._operator import AbstractSequenceOperator
from ._ring import attend, attend_around, attend_in_window
from ._rotary import checked_rotations, rotate


class AttentionInputs(NamedTuple):
    """The inputs of one token, or of many with a leading axis of time."""

    query: Float[Array, "*time heads dim"]
    key: Float[Array, "*time groups dim"]
    value: Float[Array, "*time groups dim"]


class Attention(AbstractSequenceOperator[AttentionInputs, Float[Array, "*time heads dim"], AttentionState]):
    r"""$y_t = \sum_{s \le t} \operatorname{softmax}_s(c(\lambda q_t^\top k_s)) \, v_s$ in each head (arXiv 1706.03762).

    Groups of neighbouring heads share keys and values (arXiv 2305.13245). $c(z) = z$, or $c \tanh(z / c)$ with
    `logit_softcapping` $c$. With `sliding_window` $W$, a token sees itself and $W - 1$ tokens before it. The first
    `rotary_dim` features of queries and keys are rotated by their token's position (arXiv 2104.09864), which counts
    from the last start.

    The state of a window has a fixed size. Without a window, only `reserve` makes it larger: the first token that finds
    no room gives NaN, and so do all tokens after it.
    """

    num_heads: int = eqx.field(static=True)
    num_kv_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    sliding_window: int | None = eqx.field(static=True)
    rope_theta: float | None = eqx.field(static=True)
    rotary_dim: int = eqx.field(static=True)
    rope_scaling: Mapping[str, Any] | None = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    logit_softcapping: float | None = eqx.field(static=True)

    @checks_itself
    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        num_kv_heads: int | None = None,
        sliding_window: int | None = None,
        rope_theta: float | None = 10000.0,
        rotary_dim: int | None = None,
        rope_scaling: Mapping[str, Any] | None = None,
        scale: float | None = None,
        logit_softcapping: float | None = None,
    ):
        """**Arguments:**

        - `num_heads`: the number of query heads.
        - `head_dim`: the number of features per head.
        - `num_kv_heads`: the number of heads of keys and values, a divisor of `num_heads`; `num_heads` when `None`.
        - `sliding_window`: $W$; `None` for all earlier tokens.
        - `rope_theta`: the base of the rotations' wavelengths; `None` for no rotations.
        - `rotary_dim`: the number of rotated features, which is even; all when `None`.
        - `rope_scaling`: how angles are scaled: `rope_type` (`linear`, `llama3` or `yarn`) and its numbers, under the
            names of HF transformers.
        - `scale`: $\\lambda$; `head_dim ** -0.5` when `None`.
        - `logit_softcapping`: $c$; `None` for none.

        **Raises:** `ValueError` naming the argument that does not fit.
        """
        groups = num_heads if num_kv_heads is None else num_kv_heads
        check_sizes(num_heads=num_heads, head_dim=head_dim, num_kv_heads=groups)
        if num_heads % groups != 0:
            raise ValueError(
                f"`num_kv_heads` must divide `num_heads` = {num_heads}: heads share keys in equal groups, got {groups}."
            )
        if sliding_window is not None:
            check_sizes(sliding_window=sliding_window)
        rotary = head_dim if rotary_dim is None else rotary_dim
        rotated = rope_theta is not None
        self.rope_scaling = checked_rotations(rope_theta, rotary, head_dim, rope_scaling) if rotated else None
        self.num_heads, self.num_kv_heads, self.head_dim = int(num_heads), int(groups), int(head_dim)
        self.sliding_window = None if sliding_window is None else int(sliding_window)
        self.rope_theta = None if rope_theta is None else float(rope_theta)
        self.rotary_dim = int(rotary)
        self.scale = head_dim**-0.5 if scale is None else positive("scale", scale)
        self.logit_softcapping = None if logit_softcapping is None else positive("logit_softcapping", logit_softcapping)

    def init_state(self) -> AttentionState:
        """The state without tokens. Its room is that of the window, or none without a window."""
        empty = jnp.zeros((self.num_kv_heads, self.sliding_window or 0, self.head_dim), jnp.float32)
        return AttentionState(empty, empty, jnp.zeros((), jnp.int32))

    def reserve(self, state: AttentionState, tokens: int) -> AttentionState:
        """As `AbstractSequenceOperator.reserve`. A window stays unchanged.

        Other room grows as `with_room` says.
        """
        more = whole(tokens)
        if more is None or more < 0:
            raise ValueError(f"Attention.reserve: `tokens` must be an integer of at least 0, got {shown(tokens)}.")
        return state if self.sliding_window is not None or more == 0 else with_room(state, more)

    @sharded_by_xla
    @checks_itself
    def chunk_scan(
        self, inputs: AttentionInputs, state: AttentionState, extent: Extent = Extent()
    ) -> tuple[Float[Array, "time heads dim"], AttentionState]:
        """As `AbstractSequenceOperator.chunk_scan`."""
        query, key, value = self._checked("chunk_scan", inputs, many=True)
        time, state = query.shape[0], self._checked_state(state, query.shape[0])
        extent = extent_of(extent, time)
        if extent.starts is not None:  # a byte per token: every device needs those of all slices
            extent = CheckedExtent(extent.length, undivided(extent.starts, 0, AXIS))
        index, sequence = jnp.arange(time, dtype=jnp.int32), extent.sequences(time)
        began = 0 if extent.starts is None else jax.lax.cummax(jnp.where(extent.starts, index, 0))
        position = index - began + jnp.where(sequence == 0, state.length, 0)
        query, key = (self._rotated(x, position) for x in (query, key))
        after, valid = self._written(state, key, value, position, sequence, extent), extent.valid(time)
        counted = sequence if valid is None else jnp.where(valid, sequence, -1)
        new = Tokens(key, value, position, counted)
        if is_spread() and time > 0:
            y, _ = in_slices(_scan, self._scoring, (query, new), self._old(state), CheckedExtent(extent.length))
        elif self.sliding_window is None and extent.starts is None:
            y = attend(query, position, counted, (self._old(after),), self._scoring)
        else:
            y = attend(query, position, counted, (self._old(state), _by_group(new)), self._scoring)
        return self._only_in_room(y, state, position, valid), after

    @sharded_by_xla
    @checks_itself
    def step(
        self, inputs: AttentionInputs, state: AttentionState, *, valid: Valid | None = None
    ) -> tuple[Float[Array, "heads dim"], AttentionState]:
        """As `AbstractSequenceOperator.step`. The cost depends on the room, not on the number of tokens in it."""
        query, key, value = self._checked("step", inputs, many=False)
        state = self._checked_state(state, 1)
        valid = None if valid is None else check_valid(valid)
        room, position = state.keys.shape[1], state.length
        query, key = (self._rotated(x[None], position[None])[0] for x in (query, key))
        place = position if self.sliding_window is None else position % room
        place = place if valid is None else jnp.where(valid, place, room)
        # With one group, XLA's CPU backend copies the whole array, unless it writes several places.
        places = jnp.stack([place, jnp.full_like(place, room)]) if self.num_kv_heads == 1 else place[None]
        write = lambda kept, new: kept.at[:, places].set(new[:, None].astype(kept.dtype), mode="drop")
        count = position + (1 if valid is None else valid.astype(jnp.int32))
        after = AttentionState(write(state.keys, key), write(state.values, value), self._told(count, room))
        seen = jnp.arange(room, dtype=jnp.int32) <= position  # of a full ring, all
        queries = grouped(query[None], self.num_kv_heads)
        y = ungrouped(attend_to_seen(queries, after.keys, after.values, seen[None], self._scoring))
        return self._only_in_room(y, state, position[None], None if valid is None else valid[None])[0], after

    @property
    def _scoring(self) -> Scoring:
        return Scoring(self.scale, self.logit_softcapping, self.sliding_window)

    def _old(self, state: AttentionState) -> Tokens:
        """The tokens of a state: those of a window in order, others at the start of the room."""
        room = state.keys.shape[1]
        index = jnp.arange(room, dtype=jnp.int32)
        none = jnp.zeros_like(index)
        if self.sliding_window is None:
            return Tokens(state.keys, state.values, index, jnp.where(index < state.length, none, none - 1))
        earlier = state.length - room + index
        keys, values = (x[:, earlier % room] for x in (state.keys, state.values))
        return Tokens(keys, values, earlier, jnp.where(earlier >= 0, none, none - 1))

    def _written(
        self,
        state: AttentionState,
        key: Float[Array, "time groups dim"],
        value: Float[Array, "time groups dim"],
        position: Int[Array, " time"],
        sequence: Int[Array, " time"],
        extent: CheckedExtent,
    ) -> AttentionState:
        """The state after the tokens of the last sequence. Tokens that do not count, or find no room, are dropped."""
        room, time, last = state.keys.shape[1], key.shape[0], sequence[-1]
        kept = sequence == last
        if (valid := extent.valid(time)) is not None:
            kept &= valid
        goes_on = last == 0
        count = jnp.where(goes_on, state.length, 0) + jnp.sum(kept, dtype=jnp.int32)
        place = position
        if self.sliding_window is not None:
            kept &= position >= count - room
            place = position % room
        place = jnp.where(kept, place, room)

        def write(old, new):
            if extent.starts is not None:
                old = jnp.where(goes_on, old, jnp.zeros_like(old))
            return old.at[:, place].set(jnp.swapaxes(new, 0, 1).astype(old.dtype), mode="drop")

        return AttentionState(write(state.keys, key), write(state.values, value), self._told(count, room))

    def _told(self, count: Int[Array, ""], room: int) -> Int[Array, ""]:
        """The number of tokens; that of a sequence that lost one, for want of room, is never within a room again."""
        return count if self.sliding_window is not None else jnp.where(count > room, LOST, count)

    def _only_in_room(
        self, y: Array, state: AttentionState, position: Int[Array, " time"], valid: Bool[Array, " time"] | None
    ) -> Array:
        """Replace outputs by NaN where a token that counts found no room, so that no wrong number is returned."""
        if self.sliding_window is not None:
            return y
        lost = position >= state.keys.shape[1]
        return jnp.where((lost if valid is None else lost & valid)[:, None, None], jnp.nan, y)

    def _rotated(self, x: Float[Array, "time some dim"], position: Int[Array, " time"]) -> Array:
        theta = self.rope_theta
        return x if theta is None else rotate(x, position, theta, self.rotary_dim, self.rope_scaling)

    def _checked(self, method: str, inputs: Any, *, many: bool) -> AttentionInputs:
        if not isinstance(inputs, tuple) or len(inputs) != 3:
            raise ValueError(f"Attention.{method}: `inputs` must be `AttentionInputs`, got {type(inputs).__name__}.")
        check, groups = many_tokens if many else one_token, (self.num_kv_heads, self.head_dim)
        (query,) = check(self, (self.num_heads, self.head_dim), {"query": inputs[0]})
        key, value = check(self, groups, {"key": inputs[1], "value": inputs[2]})
        if many and key.shape[0] != query.shape[0]:
            raise ValueError(
                f"Attention.{method}: axis 0 (time) of `key` must be {query.shape[0]}, as in `query`, got "
                f"{key.shape[0]}: they are of the same tokens."
            )
        dtype = at_least_float32(query.dtype)
        return AttentionInputs(query.astype(dtype), key.astype(dtype), value.astype(dtype))

    def _checked_state(self, state: Any, tokens: int) -> AttentionState:
        groups, dim = self.num_kv_heads, self.head_dim
        if not isinstance(state, tuple) or len(state) != 3:
            raise ValueError("Attention: `state` must be an `AttentionState`. Start from `init_state()`.")
        state = AttentionState(*[jnp.asarray(array) for array in state])
        window = self.sliding_window
        room = state.keys.shape[1] if window is None and state.keys.ndim > 1 else window
        for name, want in (("keys", (groups, room, dim)), ("values", (groups, room, dim)), ("length", ())):
            if (got := getattr(state, name)).shape != want:
                raise ValueError(
                    f"Attention: `state.{name}` must have shape {want}, got {got.shape}. Start from `init_state()`."
                )
        if window is None and tokens > state.keys.shape[1]:
            raise ValueError(
                f"Attention: the cache has room for {state.keys.shape[1]} tokens, got {tokens} at once: make room with "
                f"`reserve(cache, {tokens})` first."
            )
        return state


def _by_group(tokens: Tokens) -> Tokens:
    """Tokens whose keys and values have time as their first axis, with groups as that."""
    return tokens._replace(keys=jnp.swapaxes(tokens.keys, 0, 1), values=jnp.swapaxes(tokens.values, 0, 1))


def _scan(
    scoring: Scoring, inputs: tuple[Array, Tokens], old: Tokens, extent: CheckedExtent, exchange: Exchange
) -> tuple[Array, tuple[()]]:
    """The outputs over a slice of the tokens, whose positions are known. The state is written elsewhere."""
    query, own = inputs[0], _by_group(inputs[1])
    if (valid := extent.valid(query.shape[0])) is not None:
        own = own._replace(sequence=jnp.where(valid, own.sequence, -1))
    run = attend_around if scoring.window is None else attend_in_window
    return run(query, old, own, scoring), ()
