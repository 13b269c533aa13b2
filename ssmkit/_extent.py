"""`Extent`: which tokens of a sequence count, and where sequences start. Models pass it down to their kernels."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ._types import Length, check_length, checks_itself, shown


Tree = TypeVar("Tree")


class Extent(NamedTuple):
    """Which of many tokens count, and where new sequences start. `Extent()`: all tokens count, as one sequence.

        positions = jnp.array([0, 1, 2, 0, 1])  # two documents in one row
        model.forward(tokens, cache, ssmkit.Extent(starts=positions == 0))

    The logits of the second document then equal those of the document alone.
    """

    length: Length | None = None
    """Tokens at or past this index do not count; `None` means that all count."""
    starts: Bool[Array, " time"] | None = None
    """True for tokens before which the state is reset to that of an empty cache; `None` means no such token."""

    def checked(self, time: int) -> "CheckedExtent":
        """The extent of `time` tokens, checked, as arrays.

        A start at a token that does not count is removed.

        **Raises:** `ValueError` naming the field that does not fit.
        """
        length = None if self.length is None else check_length(self.length, time)
        starts = self.starts
        if starts is not None:
            try:
                starts = jnp.asarray(starts)
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"`starts` must be booleans of shape ({time},), got {shown(starts)}.") from error
            if starts.shape != (time,) or starts.dtype != jnp.bool_:
                raise ValueError(
                    f"`starts` must be booleans of shape ({time},), one for each token, got {starts.dtype} of shape "
                    f"{starts.shape}."
                )
            if (valid := CheckedExtent(length).valid(time)) is not None:
                starts = starts & valid
        return CheckedExtent(length, starts)


class CheckedExtent(Extent):
    """An `Extent` that has been checked. The function that a user calls checks it, once."""

    __slots__ = ()

    length: Int[Array, ""] | None

    def checked(self, time: int) -> "CheckedExtent":
        """This extent, which is checked already."""
        return self

    def stop(self, time: int) -> Length:
        """The number of tokens that count."""
        return time if self.length is None else self.length

    def valid(self, time: int) -> Bool[Array, " time"] | None:
        """Which tokens count; `None` means all."""
        return None if self.length is None else jnp.arange(time, dtype=jnp.int32) < self.length

    def sequences(self, time: int) -> Int[Array, " time"]:
        """The index of every token's sequence: 0 for the sequence that continues, and one more at each start."""
        starts = jnp.zeros(time, bool) if self.starts is None else self.starts
        return jnp.cumsum(starts, dtype=jnp.int32)


def extent_of(extent: Any, time: int) -> CheckedExtent:
    """Check the extent that a user gave for `time` tokens.

    **Raises:** `ValueError` when it is not an `Extent`, or does not fit the tokens.
    """
    if not isinstance(extent, Extent):
        raise ValueError(f"`extent` must be an `ssmkit.Extent(length, starts)`, got {shown(extent)}.")
    return extent.checked(time)


@checks_itself
def reverse(x: Tree, extent: Extent = Extent()) -> Tree:
    """Reverse every sequence of an extent, in its own place.

    Tokens that do not count stay where they are. Applied twice, the function returns its argument. The result has the
    same extent, so that an encoder can use both directions:

        forth, _ = mixer.prefill(x, mixer.init_cache(), extent)
        back, _ = other.prefill(ssmkit.reverse(x, extent), other.init_cache(), extent)
        y = forth + ssmkit.reverse(back, extent)

    **Arguments:**

    - `x`: an array with a leading `time` axis, or a tree of them.
    - `extent`: how many tokens count, and where sequences start. The first sequence goes from token 0 to the first
        start.

    **Returns:** the same tree.

    **Raises:** `ValueError` for arrays without the same time axis, or an extent that does not fit them.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes == {()}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
        raise ValueError(f"`x` must be arrays with the same leading axis (time), got shapes {shapes}.")
    (time,) = sizes.pop()
    extent = extent_of(extent, time)
    stop, index = jnp.int32(extent.stop(time)), jnp.arange(time, dtype=jnp.int32)
    first, last = jnp.zeros_like(index), jnp.broadcast_to(stop - 1, index.shape)
    if extent.starts is not None:
        first = jax.lax.cummax(jnp.where(extent.starts, index, first))
        later = jnp.append(jnp.where(extent.starts, index, stop)[1:], stop)
        last = jax.lax.cummin(later, reverse=True) - 1
    source = jnp.where(index < stop, first + last - index, index)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[source], x)
