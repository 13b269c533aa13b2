"""Mixers that act on each token alone."""

import abc

from jaxtyping import Array, Float

from .._extent import Extent
from .._types import Valid, checks_itself
from ._mixer import AbstractMixer, features_of


class AbstractStatelessMixer(AbstractMixer[tuple[()]]):
    """A mixer that maps every token by the same function of its features. Its cache is empty."""

    @abc.abstractmethod
    def each(self, x: Float[Array, "*time width"]) -> Float[Array, "*time width"]:
        """The function, of the features of many tokens or of one."""

    def init_cache(self) -> tuple[()]:
        """The empty cache: such a mixer has no state."""
        return ()

    @checks_itself
    def prefill(
        self, x: Float[Array, "time width"], cache: tuple[()], extent: Extent = Extent()
    ) -> tuple[Float[Array, "time width"], tuple[()]]:
        """As `AbstractMixer.prefill`."""
        return self.each(features_of(self, x, many=True)), cache

    @checks_itself
    def step(
        self, x: Float[Array, " width"], cache: tuple[()], *, valid: Valid | None = None
    ) -> tuple[Float[Array, " width"], tuple[()]]:
        """As `AbstractMixer.step`."""
        return self.each(features_of(self, x, many=False)), cache
