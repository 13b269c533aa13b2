"""Sequence mixers and the cache protocol."""

import abc
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._extent import Extent, extent_of
from .._final import hook, refuse_overrides
from .._sharding import sharded_by_xla
from .._types import Valid, at_least_float32, checks_itself
from ..kernels._platform import platform
from ..layers._dropout import Dropout
from ..layers._norms import Norm
from ..operators._checks import ADD_TIME
from ..operators._operator import AbstractSequenceOperator


Cache = TypeVar("Cache")

Advance: TypeAlias = Callable[[AbstractSequenceOperator, Any, Any], tuple[Any, Any]]


class AbstractMixer(eqx.Module, Generic[Cache]):
    """A causal map of a sequence of features, with a cache whose size only `reserve` changes.

    For recurrences, the size is constant. The cache is a pytree of arrays that the mixer chooses. Laws, for every split
    of a sequence into `a` and `b`:

    1. `prefill(a)` equals `step` iterated over `a`, outputs and cache.
    2. `prefill(a ++ b, c)` equals `prefill(b)` after `prefill(a, c)`.
    3. Tokens at or past the extent's `length`, and a `step` with `valid=False`, leave the cache unchanged bit for bit
       (except that a zero may lose its sign). Outputs at such tokens are unspecified but finite.
    4. Structure and dtypes of the cache never change, and shapes only by `reserve`.
    5. Results do not depend on a chunk size.
    6. A start forgets: `prefill(a ++ b, c)` with a start at `b` gives the outputs of `prefill(a, c)`, followed by the
       outputs and the cache of `prefill(b, init_cache())`.
    7. `reserve` changes nothing but the room; within the room, all these laws hold.

    A mixer is written for one sequence; batch with `jax.vmap`.
    """

    @abc.abstractmethod
    def init_cache(self) -> Cache:
        """The cache before the first token."""

    @hook
    def reserve(self, cache: Cache, tokens: int) -> Cache:
        """The same cache with room for `tokens` more tokens. A cache that does not store tokens is returned unchanged.

        **Arguments:**

        - `cache`: the cache of one sequence, or of rows with a leading axis on every array.
        - `tokens`: the number of tokens to come; a Python integer.

        **Returns:** the cache. Under a trace, the number of earlier tokens is unknown, so the old room counts as full.

        **Raises:** `ValueError` when `tokens` is not a number of tokens.
        """
        return cache

    @abc.abstractmethod
    def prefill(
        self, x: Float[Array, "time width"], cache: Cache, extent: Extent = Extent()
    ) -> tuple[Float[Array, "time width"], Cache]:
        """Run many tokens. The cache need not be empty.

        **Arguments:**

        - `x`: features of `time` tokens.
        - `cache`: the cache before the first token.
        - `extent`: how many tokens count, and where new sequences start; by default all count, as one sequence.

        **Returns:** features, and the cache after the last token that counts.
        """

    @abc.abstractmethod
    def step(
        self, x: Float[Array, " width"], cache: Cache, *, valid: Valid | None = None
    ) -> tuple[Float[Array, " width"], Cache]:
        """Run one token, at a cost that does not depend on the number of tokens before it.

        **Arguments:**

        - `x`: features of one token.
        - `cache`: the cache before the token.
        - `valid`: a scalar boolean; if false, the cache is returned unchanged. `None` means true.

        **Returns:** features, and the new cache.
        """


class AbstractRecurrentMixer(AbstractMixer[Cache]):
    """A mixer composed of pointwise layers and sequence operators, written once for many tokens and for one.

    A subclass writes `init_cache` and `mix`. The final methods `prefill` and `step` follow and cannot disagree.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        refuse_overrides(
            cls,
            AbstractRecurrentMixer,
            "what is computed over many tokens and over one must agree. Write `mix`, or subclass "
            "`ssmkit.AbstractMixer`.",
        )

    @abc.abstractmethod
    def mix(
        self, x: Float[Array, "*time width"], cache: Cache, advance: Advance
    ) -> tuple[Float[Array, "*time width"], Cache]:
        """The mixer's equations, valid with and without the `time` axis.

        **Arguments:**

        - `x`: features of many tokens or of one. Pointwise layers act on the last axis.
        - `cache`: the cache before them.
        - `advance`: `outputs, state = advance(operator, inputs, state)` runs a sequence operator, such as a
            recurrence or a convolution, over the given tokens.

        **Returns:** features, and the cache after these tokens.
        """

    @sharded_by_xla
    @checks_itself
    def prefill(
        self, x: Float[Array, "time width"], cache: Cache, extent: Extent = Extent()
    ) -> tuple[Float[Array, "time width"], Cache]:
        """As `AbstractMixer.prefill`."""
        x = features_of(self, x, many=True)
        extent = extent_of(extent, x.shape[0])
        return self.mix(x, cache, lambda operator, inputs, state: operator.chunk_scan(inputs, state, extent))

    @sharded_by_xla
    @checks_itself
    def step(
        self, x: Float[Array, " width"], cache: Cache, *, valid: Valid | None = None
    ) -> tuple[Float[Array, " width"], Cache]:
        """As `AbstractMixer.step`."""
        x = features_of(self, x, many=False)
        return self.mix(x, cache, lambda operator, inputs, state: operator.step(inputs, state, valid=valid))


def features_of(mixer: AbstractMixer[Any], x: Any, *, many: bool) -> Float[Array, "*time width"]:
    """Check features of many tokens, for `prefill`, or of one token, for `step`. Return a JAX array.

    **Raises:** `ValueError` naming the mixer, the actual and the expected value, and the remedy.
    """
    name, expected = type(mixer).__name__, "(time, width)" if many else "(width,)"
    if not isinstance(x, jax.Array | np.ndarray) or not jnp.issubdtype(x.dtype, jnp.floating):
        got = getattr(x, "dtype", type(x).__name__)
        raise ValueError(f"{name}: `x` must be floating-point features of shape {expected}, got {got}.")
    if x.ndim != 1 + many:
        remedy = "a mixer takes one sequence; batch with `jax.vmap`"
        if many and x.ndim == 1:
            remedy = f"it is that of one token: {ADD_TIME}"
        if not many and x.ndim == 2:
            remedy = "it is that of many tokens: a step takes one, `x[0]`; many are for `prefill`"
        method = "prefill" if many else "step"
        raise ValueError(f"{name}.{method}: `x` must have shape {expected}, got {x.shape}; {remedy}.")
    return jnp.asarray(x)


class AbstractBlock(AbstractMixer[Cache]):
    """A mixer that maps the residual stream to itself, residual sum included: a whole layer of a language model.

    `ssmkit.LanguageModel` puts any other mixer into a residual branch, and uses a block unchanged. A block with
    parallel branches, or with a norm after the mixer, is a subclass of this class with the methods of `AbstractMixer`.
    """


class ResidualBlock(AbstractBlock[Cache]):
    """`x + multiplier * dropout(post_norm(mixer(norm(x))))`: a pre-normalised residual branch, itself a mixer.

    By default there is no `post_norm`; with one, the norms are called a sandwich.
    """

    norm: Norm
    mixer: AbstractMixer[Cache]
    residual_in_fp32: bool = eqx.field(static=True, default=True)
    dropout: Dropout = Dropout()
    multiplier: float = eqx.field(static=True, default=1.0)
    post_norm: Norm | None = None

    def init_cache(self) -> Cache:
        """The mixer's cache."""
        return self.mixer.init_cache()

    def reserve(self, cache: Cache, tokens: int) -> Cache:
        """As `AbstractMixer.reserve`."""
        return self.mixer.reserve(cache, tokens)

    def prefill(
        self, x: Float[Array, "time width"], cache: Cache, extent: Extent = Extent()
    ) -> tuple[Float[Array, "time width"], Cache]:
        """As `AbstractMixer.prefill`."""
        branch, cache = self.mixer.prefill(self.norm(x), cache, extent)
        if platform() == "tpu":  # whose compiler would make one slow operation of the projection, the sum and the norm
            branch = jax.lax.optimization_barrier(branch)
        return self.add(x, self._after(branch)), cache

    def step(
        self, x: Float[Array, " width"], cache: Cache, *, valid: Valid | None = None
    ) -> tuple[Float[Array, " width"], Cache]:
        """As `AbstractMixer.step`."""
        branch, cache = self.mixer.step(self.norm(x), cache, valid=valid)
        return self.add(x, self._after(branch)), cache

    def _after(self, branch: Float[Array, "*time width"]) -> Float[Array, "*time width"]:
        """What is done to the output of the mixer before it is added."""
        branch = self.dropout(branch if self.post_norm is None else self.post_norm(branch))
        return branch if self.multiplier == 1.0 else self.multiplier * branch

    def add(self, x: Float[Array, "*time width"], branch: Float[Array, "*time width"]) -> Float[Array, "*time width"]:
        """The residual sum, in float32 or, without `residual_in_fp32`, in the stream's own dtype."""
        dtype = at_least_float32(x.dtype) if self.residual_in_fp32 else x.dtype
        return (x.astype(dtype) + branch.astype(dtype)).astype(dtype)
