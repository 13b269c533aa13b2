"""Mixers, recurrences and operators that keep the laws, and such that are wrong in one way each."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import ssmkit
from ssmkit import testing
from ssmkit._batching import mappable


TIME, WIDTH, VOCAB = 7, 3, 5


def valid_tokens(time: int, length) -> Array:
    return jnp.arange(time, dtype=jnp.int32) < jnp.asarray(time if length is None else length, jnp.int32)


def emptied(init, state, start):
    """The state before a token: the first one where a sequence starts."""
    return jax.tree.map(functools.partial(jnp.where, start), init, state)


def starts_of(time: int, extent: ssmkit.Extent) -> Array:
    starts = jnp.zeros(time, bool) if extent.starts is None else extent.starts
    return starts & valid_tokens(time, extent.length)


# Mixers, by hand: a decaying sum and a count of tokens. Every mistake is one method of a subclass.


class Smooth(ssmkit.AbstractMixer[Any]):
    """`s_t = s_{t-1} / 2 + x_t`."""

    scale: Array = eqx.field(default_factory=lambda: jnp.float32(1.0))

    def init_cache(self):
        return {"count": jnp.zeros((), int), "sum": jnp.zeros(WIDTH, jnp.float32)}

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        valid = valid_tokens(x.shape[0], extent.length)

        def body(cache, token):
            x, valid, start = token
            y, cache = Smooth.step(self, x, emptied(Smooth.init_cache(self), cache, start), valid=valid)
            return cache, y

        cache, y = jax.lax.scan(body, cache, (x, valid, starts_of(x.shape[0], extent)))
        return y, cache

    def step(self, x, cache, *, valid=None):
        after = {"count": cache["count"] + 1, "sum": cache["sum"] / 2 + self.scale * x}
        if valid is not None:
            after = jax.tree.map(functools.partial(jnp.where, valid), after, cache)
        return after["sum"], after


class Mean(Smooth):
    """The mean over all tokens of the sequence."""

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        y, cache = super().prefill(x, cache, extent)
        return y - jnp.mean(x, axis=0, keepdims=True), cache


class Next(Smooth):
    """Every output is of the next token."""

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        y, cache = super().prefill(x, cache, extent)
        return jnp.concatenate([y[1:], y[:1]]), cache


class Peeking(Smooth):
    """The coefficients of every token depend on the cache, of which many tokens see the first only."""

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        return super().prefill(x * (1 + cache["sum"][None]), cache, extent)

    def step(self, x, cache, *, valid=None):
        return super().step(x * (1 + cache["sum"]), cache, valid=valid)


class IgnoresLength(Smooth):
    def prefill(self, x, cache, extent=ssmkit.Extent()):
        return super().prefill(x, cache, extent._replace(length=None))


class IgnoresStarts(Smooth):
    def prefill(self, x, cache, extent=ssmkit.Extent()):
        return super().prefill(x, cache, extent._replace(starts=None))


class ForgetsForRoom(Smooth):
    """An empty cache has all the room, and a cache with a past loses it for more."""

    def reserve(self, cache, tokens):
        return jax.tree.map(jnp.zeros_like, cache) if tokens else cache


class IgnoresValid(Smooth):
    def step(self, x, cache, *, valid=None):
        return super().step(x, cache)


class Drifting(Smooth):
    """The outputs of a step are off by a factor, after so many tokens."""

    factor: float = eqx.field(static=True, default=2.0)
    after: int = eqx.field(static=True, default=0)

    def step(self, x, cache, *, valid=None):
        y, cache = super().step(x, cache, valid=valid)
        return jnp.where(cache["count"] > self.after, self.factor * y, y), cache


class Unpadded(Smooth):
    """Wrong only without a length, or without `valid`."""

    wrong: str = eqx.field(static=True, default="length")

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        y, cache = super().prefill(x, cache, extent)
        return (2 * y if extent.length is None and self.wrong == "length" else y), cache

    def step(self, x, cache, *, valid=None):
        y, cache = super().step(x, cache, valid=valid)
        return (2 * y if valid is None and self.wrong == "valid" else y), cache


class Forgetful(Smooth):
    """Many tokens start from nothing, whatever came before."""

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        return super().prefill(x, self.init_cache(), extent)


class Severed(Smooth):
    """Right in values, but without a share of the gradient through many tokens."""

    share: float = eqx.field(static=True, default=1.0)

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        kept = x - jax.lax.stop_gradient(x)  # zero
        return super().prefill(x - self.share * kept, cache, extent)


class Unnormalised(Smooth):
    """Divides by a norm, which may be 0; many tokens have an epsilon, if so asked."""

    epsilon: float = eqx.field(static=True, default=0.0)

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        norm = jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True) + self.epsilon)
        return super().prefill(x / norm, cache, extent)

    def step(self, x, cache, *, valid=None):
        return super().step(x / jnp.sqrt(jnp.sum(x**2)), cache, valid=valid)


class NotANumberInPadding(Smooth):
    def prefill(self, x, cache, extent=ssmkit.Extent()):
        y, cache = super().prefill(x, cache, extent)
        valid = valid_tokens(x.shape[0], extent.length)
        return jnp.where(valid[:, None], y, jnp.nan), cache


class Reformed(Smooth):
    """The cache after a step is of another form."""

    change: Callable = eqx.field(static=True, default=lambda cache: cache)

    def step(self, x, cache, *, valid=None):
        y, cache = super().step(x, cache, valid=valid)
        return y, self.change(cache)


class Mingling(Smooth):
    """Side by side with others, a row has a share of theirs."""

    def step(self, x, cache, *, valid=None):
        share = mappable(lambda _, x: x, lambda _, x: x + 1e-3 * jnp.sum(x, axis=0, keepdims=True))
        return super().step(share(None, x), cache, valid=valid)


class WeakFromTheStart(Smooth):
    def init_cache(self):
        return super().init_cache() | {"count": jnp.asarray(0)}


def counting(count: Callable) -> Reformed:
    """The count is changed by every step."""
    return Reformed(change=lambda cache: cache | {"count": count(cache["count"])})


# Recurrences.


class Decaying(ssmkit.DiagonalChunkedRecurrence[Array]):
    """Two heads of one key and one value; what `log_decay` and `value` are is a function of the token."""

    log_decay: Callable = eqx.field(static=True, default=jax.nn.log_sigmoid)
    value: Callable = eqx.field(static=True, default=lambda x: x)
    groups: int = eqx.field(static=True, default=1)
    state_shape: tuple[int, int, int] = eqx.field(static=True, default=(2, 1, 1))

    def coefficients(self, x):
        ones = jnp.ones((self.groups, 1), jnp.float32)
        return ssmkit.Coefficients(self.log_decay(x)[:, None], ones, self.value(x)[:, None], ones)


class ReadsChunkSize(Decaying):
    """Six tokens to a chunk are as the default; the outputs of other sizes are not."""

    def coefficients(self, x):
        coefficients = super().coefficients(x)
        return eqx.tree_at(lambda c: c.read, coefficients, coefficients.read * ((self.chunk_size or 6) / 6))


class NotCoefficients(Decaying):
    def coefficients(self, x):
        return x, x


# Operators: what a recurrence is not is checked as it is.


class Sum(ssmkit.AbstractSequenceOperator):
    """Outputs of any pair of inputs."""

    late: bool = eqx.field(static=True, default=False)

    def init_state(self):
        return jnp.zeros((), jnp.float32)

    def chunk_scan(self, inputs, state, extent=ssmkit.Extent()):
        a, b = inputs
        valid = valid_tokens(a.shape[0], extent.length)

        def body(state, token):
            inputs, valid, start = token
            y, state = self.step(inputs, emptied(self.init_state(), state, start), valid=valid)
            return state, y

        inputs = (jnp.roll(a, -1) if self.late else a, b)
        state, y = jax.lax.scan(body, state, (inputs, valid, starts_of(a.shape[0], extent)))
        return y, state

    def step(self, inputs, state, *, valid=None):
        a, b = inputs
        after = 0.5 * state + a * b
        after = after if valid is None else jnp.where(valid, after, state)
        return after, after


# Every one of them, checked.


def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(TIME, WIDTH)).astype(np.float32)


def heads() -> np.ndarray:
    """Token by token, from -1.5 to 1.5: 100 times as much is beyond what a sigmoid can tell from 0 and 1."""
    return np.linspace(-1.5, 1.5, TIME * 2, dtype=np.float32).reshape(TIME, 2)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    return features()[:, 0], features()[:, 1]


TOKENS = np.asarray([3, 1, 4, 1, 0, 2, 3], np.int32)


def check(module, **bounds) -> testing.Report:
    """By the function for its kind."""
    if isinstance(module, ssmkit.AbstractMixer):
        return testing.check_mixer(module, features(), **bounds)
    if isinstance(module, ssmkit.AbstractLanguageModel):
        return testing.check_model(module, TOKENS, **bounds)
    if isinstance(module, ssmkit.DiagonalChunkedRecurrence):
        return testing.check_recurrence(module, heads(), **bounds)
    return testing.check_operator(module, pairs(), **bounds)
