"""Mixers beside each other, on the same features."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from .._construction import positive
from .._extent import Extent
from .._types import Valid, checks_itself, shown
from ._mixer import AbstractMixer, features_of


class ParallelMixer(AbstractMixer[tuple[Any, ...]]):
    r"""$\sum_i o_i \operatorname{mixer}_i(n_i x)$: several mixers of the same features, with constant factors."""

    mixers: tuple[AbstractMixer[Any], ...]
    in_multipliers: tuple[float, ...] = eqx.field(static=True)
    out_multipliers: tuple[float, ...] = eqx.field(static=True)

    @checks_itself
    def __init__(
        self,
        mixers: Sequence[AbstractMixer[Any]],
        *,
        in_multipliers: Sequence[float] | None = None,
        out_multipliers: Sequence[float] | None = None,
    ):
        """**Arguments:**

        - `mixers`: the mixers, at least one. In a configuration, each is a table with a name and keywords.
        - `in_multipliers`, `out_multipliers`: $n_i$ and $o_i$, one per mixer; all are 1 when `None`.

        **Raises:** `ValueError` or `TypeError` naming the argument that does not fit.
        """
        if not isinstance(mixers, Sequence) or not mixers:
            raise TypeError(f"ParallelMixer: `mixers` must be a list of at least one mixer, got {shown(mixers)}.")
        for i, mixer in enumerate(mixers):
            if not isinstance(mixer, AbstractMixer):
                raise TypeError(
                    f"ParallelMixer: `mixers[{i}]` must be an `ssmkit.AbstractMixer`, got {type(mixer).__name__}."
                )
        self.mixers = tuple(mixers)
        self.in_multipliers, self.out_multipliers = (
            _factors(name, given, len(self.mixers))
            for name, given in (("in_multipliers", in_multipliers), ("out_multipliers", out_multipliers))
        )

    def init_cache(self) -> tuple[Any, ...]:
        """One cache for every mixer."""
        return tuple(mixer.init_cache() for mixer in self.mixers)

    def reserve(self, cache: tuple[Any, ...], tokens: int) -> tuple[Any, ...]:
        """As `AbstractMixer.reserve`."""
        return tuple(mixer.reserve(own, tokens) for mixer, own in zip(self.mixers, cache, strict=True))

    @checks_itself
    def prefill(
        self, x: Float[Array, "time width"], cache: tuple[Any, ...], extent: Extent = Extent()
    ) -> tuple[Float[Array, "time width"], tuple[Any, ...]]:
        """As `AbstractMixer.prefill`."""
        x = features_of(self, x, many=True)
        return self._sum(mixer.prefill(x, own, extent) for mixer, x, own in self._inputs(x, cache))

    @checks_itself
    def step(
        self, x: Float[Array, " width"], cache: tuple[Any, ...], *, valid: Valid | None = None
    ) -> tuple[Float[Array, " width"], tuple[Any, ...]]:
        """As `AbstractMixer.step`."""
        x = features_of(self, x, many=False)
        return self._sum(mixer.step(x, own, valid=valid) for mixer, x, own in self._inputs(x, cache))

    def _inputs(self, x: Array, cache: tuple[Any, ...]):
        inputs = (_scaled(factor, x) for factor in self.in_multipliers)
        return zip(self.mixers, inputs, cache, strict=True)

    def _sum(self, results: Any) -> tuple[Array, tuple[Any, ...]]:
        outputs, caches = zip(*results, strict=True)
        first, *others = (_scaled(factor, y) for factor, y in zip(self.out_multipliers, outputs, strict=True))
        return sum(others, first), caches


def _scaled(factor: float, x: Array) -> Array:
    return x if factor == 1.0 else factor * x


def _factors(name: str, given: Any, count: int) -> tuple[float, ...]:
    if given is None:
        return (1.0,) * count
    if not isinstance(given, Sequence) or len(given) != count:
        raise ValueError(
            f"ParallelMixer: `{name}` must hold one number for each of {count} mixers, got {shown(given)}."
        )
    return tuple(positive(f"{name}[{i}]", factor) for i, factor in enumerate(given))
