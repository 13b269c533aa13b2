"""Which tokens of a sequence count, and where sequences start: one value, from a model down to its kernels."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ._types import Length, check_length, shown


class Extent(NamedTuple):
    """Which of many tokens count, and where a new sequence starts among them. `Extent()` says: all of them, one.

        positions = jnp.array([0, 1, 2, 0, 1])  # two documents in one row
        model.forward(tokens, cache, ssmkit.Extent(starts=positions == 0))

    The logits of the second document are then those that it has alone.
    """

    length: Length | None = None
    """Tokens at or past it do not count; `None` means that all do."""
    starts: Bool[Array, " time"] | None = None
    """Before these tokens the state is empty again, as in the cache before the first token; `None` means nowhere."""

    def checked(self, time: int) -> "CheckedExtent":
        """The same for `time` tokens, as arrays that need no further look.

        A start that does not count is none.

        **Raises:** `ValueError` naming what does not fit.
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
    """An `Extent` that has been checked, which is done once: by whatever a user calls."""

    __slots__ = ()

    length: Int[Array, ""] | None

    def checked(self, time: int) -> "CheckedExtent":
        """The extent itself."""
        return self

    def stop(self, time: int) -> Length:
        """How many tokens count."""
        return time if self.length is None else self.length

    def valid(self, time: int) -> Bool[Array, " time"] | None:
        """Which tokens count; `None` means all."""
        return None if self.length is None else jnp.arange(time, dtype=jnp.int32) < self.length

    def sequences(self, time: int) -> Int[Array, " time"]:
        """The number of every token's sequence: 0 for the one that goes on, and one more at each start."""
        starts = jnp.zeros(time, bool) if self.starts is None else self.starts
        return jnp.cumsum(starts, dtype=jnp.int32)


def extent_of(extent: Any, time: int) -> CheckedExtent:
    """The checked extent that a user gave for `time` tokens.

    **Raises:** `ValueError` when it is none, or does not fit.
    """
    if not isinstance(extent, Extent):
        raise ValueError(f"`extent` must be an `ssmkit.Extent(length, starts)`, got {shown(extent)}.")
    return extent.checked(time)
