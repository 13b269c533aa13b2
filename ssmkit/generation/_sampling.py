"""Samplers, which choose the next token from logits."""

import abc
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, UInt32

from .._types import Logits, PRNGKeyArray, Token, checks_itself, real, shown, whole


class AbstractSampler(eqx.Module):
    """A sampler chooses a token. It has no state: the engine owns the random key and the history of every row."""

    @property
    @abc.abstractmethod
    def needs_key(self) -> bool:
        """Whether the sampler uses `key`; `generate` then requires one."""

    @property
    @abc.abstractmethod
    def needs_history(self) -> bool:
        """Whether the sampler uses `history`; otherwise the engine keeps none."""

    @abc.abstractmethod
    def __call__(self, logits: Logits, *, key: PRNGKeyArray | None, history: Bool[Array, " vocab"] | None) -> Token:
        """Choose one token of one sequence.

        **Arguments:**

        - `logits`: the logits, float32.
        - `key`: a new key for every token if `needs_key`, else `None`.
        - `history`: which ids occurred in the prompt or were generated; `None` unless `needs_history`.
        """


class Greedy(AbstractSampler):
    """A sampler that takes the most probable token, and the lowest id among equals."""

    @property
    def needs_key(self) -> bool:
        """Never."""
        return False

    @property
    def needs_history(self) -> bool:
        """Never."""
        return False

    def __call__(self, logits: Logits, *, key: PRNGKeyArray | None, history: Bool[Array, " vocab"] | None) -> Token:
        """As `AbstractSampler.__call__`."""
        return jnp.argmax(logits).astype(jnp.int32)


_LARGEST = float(np.finfo(np.float32).max)
# For each number of a `Sampler`: how it is read, which values are valid, and the words of the message.
_RANGES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], str]] = {
    "temperature": (real, lambda x: x >= 1e-6, "at least 1e-6 ({zero})"),
    "top_k": (whole, lambda k: k >= 1, "an integer, at least 1"),
    "top_p": (real, lambda p: 0 < np.float32(p) and p <= 1, "in (0, 1]"),
    "min_p": (real, lambda p: 0 <= p <= 1, "in [0, 1]"),
    "repetition_penalty": (real, lambda x: np.float32(x) > 0, "above 0"),
}


def out_of_range(given: Iterable[Any], label: Callable[[str], str], zero: str) -> list[str]:
    """The problems of the arguments of a `Sampler`, in their order.

    **Arguments:**

    - `given`: the arguments.
    - `label`: a function from an argument's name to its label in the message.
    - `zero`: the remedy for a temperature of 0.

    **Returns:** a part of a sentence for every value out of range.
    """
    problems = []
    for (name, (read, is_good, need)), value in zip(_RANGES.items(), given, strict=True):
        if value is None and name != "temperature":
            continue
        number = read(value)
        finite = number is not None and not abs(number) > _LARGEST
        if not (finite and is_good(number)):
            kind = "one finite number, " if read is real and not finite else ""
            problems.append(f"{label(name)} must be {kind}{need.format(zero=zero)}, got {shown(value)}")
    return problems


class Sampler(AbstractSampler):
    """Random sampling from a reshaped distribution, in the order and with the meaning of HF transformers.

    The order is repetition penalty, temperature, top-k, top-p, min-p. `None` switches a filter off. Values are arrays,
    so that new values compile nothing. All ties at a threshold are kept. Nothing is sorted: thresholds are found by
    bisection on the bits of the logits, which is exact and needs no custom call on any backend.
    """

    temperature: Float[Array, ""]
    top_k: Int[Array, ""] | None
    top_p: Float[Array, ""] | None
    min_p: Float[Array, ""] | None
    repetition_penalty: Float[Array, ""] | None

    @checks_itself
    def __init__(
        self,
        temperature: Float[ArrayLike, ""] = 1.0,
        top_k: Int[ArrayLike, ""] | None = None,
        top_p: Float[ArrayLike, ""] | None = None,
        min_p: Float[ArrayLike, ""] | None = None,
        repetition_penalty: Float[ArrayLike, ""] | None = None,
    ):
        """**Arguments:**

        - `temperature`: divides the logits, a finite number of at least 1e-6 (for 0 use `Greedy`).
        - `top_k`: keep the k most probable tokens, at least 1.
        - `top_p`: keep the smallest set of most probable tokens with at least this mass, in (0, 1] (arXiv 1904.09751).
        - `min_p`: keep tokens at least this fraction as probable as the best one, in [0, 1] (arXiv 2407.01082).
        - `repetition_penalty`: a value above 1 makes earlier tokens less probable (arXiv 1909.05858, section 4.1).

        **Raises:** `ValueError` listing every value out of range.
        """
        given = (temperature, top_k, top_p, min_p, repetition_penalty)
        problems = out_of_range(given, "`{}`".format, "use `Greedy()` for 0")
        if problems:
            raise ValueError("Sampler: " + "; ".join(problems) + ".")
        values = {name: read(value) for (name, (read, _, _)), value in zip(_RANGES.items(), given, strict=True)}
        scalar = lambda value: None if value is None else jnp.asarray(value, jnp.float32)
        self.temperature = jnp.asarray(values["temperature"], jnp.float32)
        self.top_k = None if top_k is None else jnp.asarray(min(values["top_k"], 2**31 - 1), jnp.int32)
        self.top_p = scalar(values["top_p"])
        self.min_p = scalar(values["min_p"])
        self.repetition_penalty = scalar(values["repetition_penalty"])

    @property
    def needs_key(self) -> bool:
        """Always."""
        return True

    @property
    def needs_history(self) -> bool:
        """True with a repetition penalty."""
        return self.repetition_penalty is not None

    def filtered(self, logits: Logits, history: Bool[Array, " vocab"] | None) -> Logits:
        """The reshaped logits; tokens that cannot be chosen are -inf."""
        logits = logits.astype(jnp.float32)
        if self.repetition_penalty is not None and history is not None:
            penalised = jnp.where(logits < 0, logits * self.repetition_penalty, logits / self.repetition_penalty)
            logits = jnp.where(history, penalised, logits)
        logits = logits / self.temperature
        if self.top_k is not None:
            k = jnp.minimum(self.top_k, logits.shape[0]).astype(jnp.float32)
            logits = _keep_top(logits, jnp.ones_like(logits), k)
        if self.top_p is not None:
            logits = _keep_top(logits, jax.nn.softmax(logits), self.top_p)
        if self.min_p is not None:
            logits = jnp.where(logits >= jnp.max(logits) + jnp.log(self.min_p), logits, -jnp.inf)
        return logits

    def __call__(self, logits: Logits, *, key: PRNGKeyArray | None, history: Bool[Array, " vocab"] | None) -> Token:
        """As `AbstractSampler.__call__`."""
        assert key is not None, "`needs_key` says so"
        return jax.random.categorical(key, self.filtered(logits, history)).astype(jnp.int32)


class MixedSampler(AbstractSampler):
    """`Greedy` or any `Sampler`, as data: rows that sample differently share an executable."""

    greedy: Bool[Array, ""]
    sampler: Sampler

    @property
    def needs_key(self) -> bool:
        """Always: some row may be random."""
        return True

    @property
    def needs_history(self) -> bool:
        """Always: some row may have a repetition penalty."""
        return True

    def __call__(self, logits: Logits, *, key: PRNGKeyArray | None, history: Bool[Array, " vocab"] | None) -> Token:
        """As `AbstractSampler.__call__`."""
        random = self.sampler(logits, key=key, history=history)
        return jnp.where(self.greedy, jnp.argmax(logits).astype(jnp.int32), random)


# Values that leave logits unchanged, bit for bit. No mass reaches infinity, so nothing is dropped; a mass of 1 might be
# reached without the least probable tokens.
_NEUTRAL = {"top_k": np.int32(2**31 - 1), "top_p": np.float32(np.inf), "min_p": np.float32(0)}
_NEUTRAL |= {"repetition_penalty": np.float32(1)}


def mixed(sampler: Greedy | Sampler) -> MixedSampler:
    """A sampler with the same choices as data, with every filter present."""
    whole_sampler = Sampler() if isinstance(sampler, Greedy) else sampler
    for name, neutral in _NEUTRAL.items():
        if getattr(whole_sampler, name) is None:
            field = lambda s, name=name: getattr(s, name)
            whole_sampler = eqx.tree_at(field, whole_sampler, jnp.asarray(neutral), is_leaf=lambda x: x is None)
    return MixedSampler(greedy=jnp.asarray(isinstance(sampler, Greedy)), sampler=whole_sampler)


def _keep_top(logits: Logits, weight: Float[Array, " vocab"], target: Float[Array, ""]) -> Logits:
    """Keep the fewest largest logits whose `weight` sums to at least `target`; the others become -inf."""
    order = _ordered_bits(logits)

    def refine(i, threshold):
        candidate = threshold | (jnp.uint32(1) << (31 - jnp.asarray(i, jnp.uint32)))
        mass = jnp.sum(jnp.where(order >= candidate, weight, 0.0))
        return jnp.where(mass >= target, candidate, threshold)

    # The largest threshold that still leaves `target`, one bit at a time.
    threshold = jax.lax.fori_loop(0, 32, refine, jnp.uint32(0))
    return jnp.where(order >= threshold, logits, -jnp.inf)


def _ordered_bits(x: Float[Array, " vocab"]) -> UInt32[Array, " vocab"]:
    """Unsigned integers in the order of the floats: the sign bit is flipped, negative numbers are reversed, -0 is 0."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)
