"""The last inputs before a token, which convolution and shift keep as their state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._extent import CheckedExtent
from .._slices import Exchange


Window = Float[Array, "window ..."]


class Inputs(NamedTuple):
    """The inputs of many tokens, behind those of the window before them."""

    extended: Float[Array, "all ..."]
    sequences: Int[Array, " all"] | None
    """The number of every input's sequence; `None` means that all are of one."""

    def before(self, distance: int, time: int) -> Float[Array, "time ..."]:
        """For every token the input so many tokens before it, or zero if that is of another sequence."""
        first = self.extended.shape[0] - time - distance
        past = self.extended[first : first + time]
        if self.sequences is None or distance == 0:
            return past
        return _where(self.sequences[first : first + time] == self.sequences[first + distance :][:time], past)


class _Segment(NamedTuple):
    """The tokens of a slice as one map of the window: how many inputs leave it, and those that enter it."""

    shift: Int[Array, ""] | int
    window: Window


def windows(
    inputs: Float[Array, "time ..."], state: Window, extent: CheckedExtent, exchange: Exchange
) -> tuple[Inputs, Window]:
    """The inputs behind the window before them, and the window after them.

    **Arguments:**

    - `inputs`: the inputs of a slice of the tokens.
    - `state`: the window before all slices: zeros where a sequence has fewer tokens.
    - `extent`: which tokens of the slice count, and where sequences start.
    - `exchange`: how the window before the slice is learnt.
    """
    size, time = state.shape[0], inputs.shape[0]

    def extended(window: Window) -> Inputs:
        sequences = None
        if extent.starts is not None:
            sequences = jnp.concatenate([jnp.zeros(size, jnp.int32), extent.sequences(time)])
        return Inputs(jnp.concatenate([window, inputs]), sequences)

    def after(all: Inputs) -> Window:
        window = jax.lax.dynamic_slice_in_dim(all.extended, extent.stop(time), size)
        if all.sequences is None:
            return window
        of = jax.lax.dynamic_slice_in_dim(all.sequences, extent.stop(time), size)
        return _where(of == all.sequences[-1], window)

    def summarise() -> _Segment:
        shift = min(time, size) if extent.length is None else jnp.minimum(extent.length, size)
        if extent.starts is not None:
            shift = jnp.where(jnp.any(extent.starts), size, shift)
        return _Segment(shift, after(extended(jnp.zeros_like(state))))

    def moved(state: Window, segment: _Segment) -> Window:
        left = jnp.concatenate([state, jnp.zeros_like(state)])
        return jax.lax.dynamic_slice_in_dim(left, segment.shift, size) + segment.window

    before, finish = exchange(state, summarise, moved)
    all = extended(before)
    return all, finish(after(all))


def _where(kept: Array, x: Array) -> Array:
    return jnp.where(jnp.reshape(kept, (-1,) + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x))
