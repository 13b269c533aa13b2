"""`ssmkit.testing` catches what it promises: every class here is wrong in one way, and a sibling without it passes."""

import functools
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import ssmkit
from ssmkit import testing
from ssmkit._batching import mappable
from ssmkit.testing import LawError
from ssmkit.testing._report import close, identical
from ssmkit.testing._row_law import row_law
from ssmkit.testing._subject import Subject


TIME, WIDTH, VOCAB = 7, 3, 5

STEPS = "many tokens equal iterated steps"
SPLITS = "a sequence may be split anywhere"
PADDING = "tokens past the length leave no trace"
IDENTITY = "invalid tokens leave the cache as it was"
INVALID = "invalid steps between valid ones leave no trace"
FORM = "the cache keeps its form"
CHUNKS = "results do not depend on the chunk size"
CAUSAL = "no output depends on later inputs"
GRADIENTS = "gradients of many tokens equal those of iterated steps"
STARTS = "a start forgets"
FINITE = "everything stays finite at extreme inputs"
LOG_DECAY = "log_decay is at most 0"
REFERENCE = "many tokens equal the float64 reference"
ROWS = "rows are independent"
FORWARD = "forward gives the logits of every step"


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
    """Of any pair of inputs."""

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


# Language models.


class Model(ssmkit.AbstractLanguageModel[Any]):
    """`Smooth` between an embedding and its transpose."""

    embedding: Array
    mixer: Smooth
    vocab_size: int = eqx.field(static=True, default=VOCAB)

    def init_cache(self):
        return self.mixer.init_cache()

    def prefill(self, tokens, cache, extent=ssmkit.Extent()):
        y, cache = self.mixer.prefill(self.embedding[tokens], cache, extent)
        last = self.last(tokens.shape[0], extent.length)
        return self.embedding @ jax.lax.dynamic_index_in_dim(y, last, keepdims=False), cache

    def last(self, time, length):
        return time - 1 if length is None else jnp.maximum(length, 1) - 1

    def step(self, token, cache, valid=None):
        y, cache = self.mixer.step(self.embedding[token], cache, valid=valid)
        return self.embedding @ y, cache

    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        y, cache = self.mixer.prefill(self.embedding[tokens], cache)
        return y @ self.embedding.T, cache


class AnotherForward(Model):
    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        logits, cache = super().forward(tokens, cache)
        return jax.nn.log_softmax(logits), cache


class LeakingForward(Model):
    """By less than the tolerance."""

    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        logits, cache = super().forward(tokens, cache)
        return logits + 1e-6 * logits[-1:], cache


class LogitsOfThePadding(Model):
    def prefill(self, tokens, cache, extent=ssmkit.Extent()):
        return super().prefill(tokens, cache)[0], super().prefill(tokens, cache, extent)[1]


class LogitsOneTokenEarly(Model):
    def last(self, time, length):
        return jnp.maximum(super().last(time, length) - 1, 0)


# Every one of them, checked.


def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(TIME, WIDTH)).astype(np.float32)


def heads() -> np.ndarray:
    """Token by token, from -1.5 to 1.5: 100 times as much is beyond what a sigmoid can tell from 0 and 1."""
    return np.linspace(-1.5, 1.5, TIME * 2, dtype=np.float32).reshape(TIME, 2)


def broken_rows(module) -> dict[str, bool]:
    """What the law of rows says of each thing compared."""
    subject = Subject(module, features())
    findings = row_law(subject, features(), [subject.warm(3), subject.warm(1), subject.init], 1e-5)
    return {finding.what: not finding.holds for finding in findings}


def test_rows_that_touch_each_other_would_be_noticed(monkeypatch):
    assert not any(broken_rows(Smooth()).values())
    found = broken_rows(Mingling())
    assert {what for what, broken in found.items() if broken} == {
        f"row {i} of fork(row, 3) run, {part}" for i in (0, 1) for part in ("outputs", "cache['sum']")
    }
    everywhere = lambda tree, i, row: jax.tree.map(lambda x, y: jnp.broadcast_to(y, x.shape), tree, row)
    nowhere = lambda tree, i, row: tree
    for put, what in ((everywhere, "the other rows of put"), (nowhere, "take(put(rows, i, row), i)")):
        monkeypatch.setattr(ssmkit.rows, "put", put)
        broken = {name for name, is_broken in broken_rows(Smooth()).items() if is_broken}
        assert broken and all(name.startswith(what) for name in broken)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    return features()[:, 0], features()[:, 1]


def model(cls: type[Model]) -> Model:
    rng = np.random.default_rng(1)
    return cls(jnp.asarray(rng.normal(size=(VOCAB, WIDTH)), jnp.float32), Smooth())


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


ALL = {ROWS, FORM, IDENTITY, STEPS, SPLITS, PADDING, CAUSAL, STARTS, INVALID, GRADIENTS, FINITE}
RIGHT = {
    "mixer": (Smooth, ALL),
    "recurrence": (Decaying, ALL | {LOG_DECAY, CHUNKS, REFERENCE}),
    "operator": (Sum, ALL),
    "model": (lambda: model(Model), ALL - {CAUSAL} | {FORWARD}),
}
# The module, the laws that it breaks, and what is said of one of them, `#` for a number.
WRONG = {
    "the future averaged": (
        Mean,
        {STEPS, PADDING, CAUSAL, GRADIENTS},
        f"{CAUSAL}: before a change of token 1, outputs first at [0, 0], got # and not #, relative error 7.29e-02, "
        "must be equal bit for bit",
    ),
    "the next token": (
        Next,
        {STEPS, SPLITS, CAUSAL, GRADIENTS, STARTS},
        f"{CAUSAL}: before a change of token 1, outputs first at [0, 0], got 1.36687 and not 0.167765, relative error "
        "2.36e+00, must be equal bit for bit",
    ),
    "coefficients that depend on the state": (
        Peeking,
        {STEPS, SPLITS, GRADIENTS, STARTS},
        f"{SPLITS}: split at 1, outputs first at [1, 0], got # and not #, relative error 2.98e-01, at most 1e-05",
    ),
    "length ignored": (
        IgnoresLength,
        {IDENTITY, STEPS, SPLITS, PADDING, GRADIENTS, STARTS},
        f"{PADDING}: with length=1, cache['sum'] first at [0], got # and not #, relative error #, "
        "must be equal bit for bit",
    ),
    "starts ignored": (
        IgnoresStarts,
        {STARTS},
        f"{STARTS}: with starts at [2, 3] and length=6, outputs first at [2, 0], got # and not #, relative error #, "
        "at most 1e-05",
    ),
    "valid ignored": (
        IgnoresValid,
        {IDENTITY, STEPS, INVALID, ROWS, GRADIENTS},
        f"{IDENTITY}: with valid=False, cache['count'] first at [], got 7 and not 0, must be equal bit for bit",
    ),
    "wrong without a length": (
        Unpadded,
        {STEPS},
        f"{STEPS}: without a length, outputs first at [0, 0], got # and not #, relative error 1.00e+00, at most 1e-05",
    ),
    "wrong without valid": (
        lambda: Unpadded(wrong="valid"),
        {STEPS},
        f"{STEPS}: without valid, outputs first at [0, 0], got # and not #, relative error 1.00e+00, at most 1e-05",
    ),
    "the past forgotten": (
        Forgetful,
        {IDENTITY, STEPS, SPLITS, GRADIENTS},
        f"{IDENTITY}: with length=0, cache['count'] first at [], got 0 and not 3, relative error 1.00e+00, must be "
        "equal bit for bit",
    ),
    "a step that drifts": (
        Drifting,
        {STEPS, GRADIENTS},
        f"{STEPS}: with length=1, outputs first at [0, 0], got # and not #, relative error 5.00e-01, at most 1e-05",
    ),
    "no gradient": (
        Severed,
        {GRADIENTS},
        f"{GRADIENTS}: d inputs first at [0, 0], got 0 and not #, relative error 1.00e+00, at most 5e-05",
    ),
    "zero divided by zero": (
        Unnormalised,
        {FINITE},
        f"{FINITE}: at 0 times the inputs, outputs is nan first at [0, 0]",
    ),
    "zero divided by zero in steps": (
        lambda: Unnormalised(epsilon=1e-12),
        {FINITE},
        f"{FINITE}: at 0 times the inputs, stepped outputs is nan first at [0, 0]",
    ),
    "not a number in outputs of padding": (
        NotANumberInPadding,
        {IDENTITY, PADDING},
        f"{PADDING}: with length=1, outputs is nan first at [1, 0]",
    ),
    "another dtype": (
        lambda: counting(lambda count: count.astype(jnp.float32)),
        {FORM},
        f"{FORM}: cache['count'] after a step is ('float32', (), False) and not ('int64', (), False) (dtype, shape, "
        "weak type)",
    ),
    "another shape": (
        lambda: counting(lambda count: count[None]),
        {FORM},
        f"{FORM}: cache['count'] after a step is ('int64', (1,), False) and not ('int64', (), False) (dtype, shape, "
        "weak type)",
    ),
    "a weak type": (
        lambda: counting(lambda count: jnp.asarray(0)),
        {FORM},
        f"{FORM}: cache['count'] after a step is ('int64', (), True) and not ('int64', (), False) (dtype, shape, "
        "weak type)",
    ),
    "a weak type from the start": (
        WeakFromTheStart,
        {FORM},
        f"{FORM}: init['count'] has a weak type: name its dtype",
    ),
    "another structure": (
        lambda: Reformed(change=lambda cache: tuple(cache.values())),
        {FORM},
        f"{FORM}: cache after a step has the structure PyTreeDef((*, *)) and not PyTreeDef({{'count': *, 'sum': *}})",
    ),
    "the decay and not its logarithm": (
        lambda: Decaying(log_decay=jax.nn.sigmoid),
        {LOG_DECAY},
        f"{LOG_DECAY}: log_decay is 0.182426 at [0, 0, 0]: it lies in [0, 1], so this is the decay itself: return its "
        "logarithm",
    ),
    "a positive log_decay": (
        lambda: Decaying(log_decay=lambda x: x + 1),
        {LOG_DECAY},
        f"{LOG_DECAY}: log_decay is 0.192308 at [1, 1, 0]",
    ),
    "a log_decay that is not a number": (
        lambda: Decaying(log_decay=lambda x: -jnp.sqrt(-x)),
        {LOG_DECAY},
        f"{LOG_DECAY}: log_decay is nan at [3, 1, 0]",
    ),
    "no gradient at decay 0": (
        lambda: Decaying(log_decay=lambda x: jnp.log(jax.nn.sigmoid(x))),
        {FINITE},
        f"{FINITE}: at 100 times the inputs, d inputs is nan first at [0, 0]",
    ),
    "an overflow": (
        lambda: Decaying(value=jnp.exp),
        {FINITE},
        f"{FINITE}: at 100 times the inputs, outputs is inf first at [5, 1, 0]",
    ),
    "a chunk size that matters": (
        ReadsChunkSize,
        {CHUNKS},
        f"{CHUNKS}: with chunk_size=3, outputs first at [0, 0, 0], got # and not #, relative error 5.00e-01, at most "
        "1e-05",
    ),
    "an operator that is late": (
        lambda: Sum(late=True),
        {STEPS, PADDING, CAUSAL, GRADIENTS},
        f"{STEPS}: with length=1, outputs first at [0], got # and not #, relative error #, at most 1e-05",
    ),
    "another forward": (
        lambda: model(AnotherForward),
        {FORWARD},
        f"{FORWARD}: logits first at [0, 0], got # and not #, relative error 2.27e+00, at most 1e-05",
    ),
    "a forward that sees the future": (
        lambda: model(LeakingForward),
        {FORWARD},
        f"{FORWARD}: before a change of token 3, logits first at [0, 0], got # and not #, relative error #, must be "
        "equal bit for bit",
    ),
    "logits of the padding": (
        lambda: model(LogitsOfThePadding),
        {STEPS, SPLITS, PADDING, GRADIENTS, STARTS},
        f"{PADDING}: with length=1, outputs first at [0, 0], got # and not #, relative error #, must be "
        "equal bit for bit",
    ),
    "logits of the token before": (
        lambda: model(LogitsOneTokenEarly),
        {STEPS, SPLITS, GRADIENTS},
        f"{STEPS}: with length=2, outputs first at [0, 0], got # and not #, relative error #, at most 1e-05",
    ),
}
NUMBER = r"-?\d+(\.\d+)?(e[+-]\d+)?"


def matches(says: str, line: str) -> bool:
    return re.fullmatch(re.escape(says).replace(r"\#", NUMBER), line) is not None


@pytest.mark.parametrize("make, laws", RIGHT.values(), ids=RIGHT)
def test_what_is_right_passes(make, laws):
    report = check(make())
    assert not report.broken
    assert {finding.law for finding in report.findings} == laws
    first, *lines = str(report).splitlines()
    assert first == f"{report.name} keeps {len(laws)} laws."
    assert {
        re.fullmatch(rf"  - (.*): (?:exact|worst relative error {NUMBER}), \d+ compared", line)[1] for line in lines
    } == laws


@pytest.mark.parametrize("make, laws, says", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(make, laws, says):
    with pytest.raises(LawError) as caught:
        check(make())
    report = caught.value.report
    assert {finding.law for finding in report.broken} == laws
    checked = {finding.law for finding in report.findings}
    first, *lines = str(caught.value).splitlines()
    assert first == f"{report.name} breaks {len(laws)} of {len(checked)} laws checked."
    assert len(lines) == len(laws)
    assert any(matches(f"  - {says}", line) for line in lines), str(caught.value)


def test_where_and_by_how_much():
    """Sums `(1, 0, 0), (0.5, 2, 0)`; the second is doubled by the step: `|(0.5, 2)| / |(1, 1, 4)|` is off."""
    with pytest.raises(LawError) as caught:
        testing.check_mixer(Drifting(after=1), np.asarray([[1, 0, 0], [0, 2, 0]], np.float32), gradient=1.0)
    assert str(caught.value) == (
        "Drifting breaks 1 of 11 laws checked.\n"
        f"  - {STEPS}: with length=2, outputs first at [1, 0], got 0.5 and not 1, relative error 4.86e-01, "
        "at most 1e-05"
    )
    (finding,) = caught.value.report.broken
    assert finding.error == pytest.approx((4.25 / 18) ** 0.5)


@pytest.mark.parametrize(
    "make, bounds, law",
    [
        (lambda error: Drifting(factor=1 / (1 - error)), dict(tolerance=1e-3, gradient=1.0), STEPS),
        (lambda error: Severed(share=error), dict(tolerance=1e-3, gradient=1e-3), GRADIENTS),
    ],
    ids=["tolerance", "gradient"],
)
def test_the_bounds_are_where_they_are_said_to_be(make, bounds, law):
    assert not check(make(0.999e-3), **bounds).broken
    with pytest.raises(LawError, match=r"relative error 1.00e-03, at most 0.001$") as caught:
        check(make(1.001e-3), **bounds)
    assert {finding.law for finding in caught.value.report.broken} == {law}


def test_a_scan_unlike_the_reference_is_said(monkeypatch):
    """No subclass can make it so; a kernel could."""
    right = ssmkit.kernels.reference

    def wrong(coefficients, state):
        outputs, final = right(coefficients, state)
        return 2 * outputs, final

    monkeypatch.setattr(ssmkit.kernels, "reference", wrong)
    with pytest.raises(LawError, match=rf"{REFERENCE}: outputs first at \[0, 0, 0\], got .*, relative error 5.00e-01"):
        check(Decaying())


# What is caught before any law.


@pytest.mark.parametrize("name", ["init_state", "chunk_scan", "step"])
def test_what_is_final_cannot_be_overridden(name):
    with pytest.raises(TypeError) as caught:
        type("Own", (Decaying,), {name: getattr(Decaying, name)})
    assert str(caught.value) == (
        f"Own.{name} overrides `DiagonalChunkedRecurrence.{name}`, which is final: what is computed over many tokens "
        "and over one must agree. Write `coefficients`."
    )


@pytest.mark.parametrize(
    "module, error, says",
    [
        (
            Decaying(groups=3),
            ValueError,
            "Decaying.coefficients: axis 0 (groups) of `write` must divide the 2 heads of `value`, got 3 in shape "
            "(3, 1).",
        ),
        (NotCoefficients(), TypeError, "NotCoefficients.coefficients must return `ssmkit.Coefficients`, got tuple."),
    ],
    ids=["groups", "something else"],
)
def test_mistaken_coefficients_name_their_class(module, error, says):
    with pytest.raises(error) as caught:
        check(module)
    assert str(caught.value) == says


KINDS = [
    (testing.check_operator, "AbstractSequenceOperator", Smooth),
    (testing.check_recurrence, "DiagonalChunkedRecurrence", Sum),
    (testing.check_mixer, "AbstractMixer", Sum),
    (testing.check_model, "AbstractLanguageModel", Smooth),
]


@pytest.mark.parametrize("function, expected, make", KINDS, ids=[kind for _, kind, _ in KINDS])
def test_another_kind(function, expected, make):
    with pytest.raises(TypeError) as caught:
        function(make(), features())
    assert str(caught.value) == f"expected an instance of `ssmkit.{expected}`, got {make.__name__}."


@pytest.mark.parametrize(
    "inputs, shapes",
    [
        ((np.ones(1), np.ones(1)), "[(1,), (1,)]"),
        ((np.ones(3), np.ones(4)), "[(3,), (4,)]"),
        ((np.ones(3), 1.0), "[(3,), ()]"),
        ((), "[]"),
    ],
    ids=["too short", "unequal", "a scalar", "nothing"],
)
def test_inputs_without_time(inputs, shapes):
    with pytest.raises(ValueError) as caught:
        testing.check_operator(Sum(), inputs)
    assert str(caught.value) == (
        f"every array of `inputs` must have the same leading axis (time), of at least 2 tokens, got shapes {shapes}."
    )


@pytest.mark.parametrize(
    "run, says",
    [
        (
            lambda: testing.check_mixer(Smooth(), features()[:, 0]),
            "`x` must be floating point of shape (time, width), got float32 of shape (7,).",
        ),
        (
            lambda: testing.check_model(model(Model), TOKENS[:, None]),
            "`tokens` must be integer ids of shape (time,), got int32 of shape (7, 1).",
        ),
        (
            lambda: testing.check_model(model(Model), features()),
            "`tokens` must be integer ids of shape (time,), got float32 of shape (7, 3).",
        ),
        (
            lambda: testing.check_operator(Sum(), "text"),
            "`inputs` must be a pytree of arrays with a leading axis (time), got 'text'.",
        ),
        (lambda: check(Smooth(), tolerance=0.0), "`tolerance` must be a number above 0, got 0.0."),
        (lambda: check(Smooth(), tolerance="1"), "`tolerance` must be a number above 0, got '1'."),
        (lambda: check(Smooth(), gradient=float("nan")), "`gradient` must be a number above 0, got nan."),
    ],
)
def test_inputs_of_another_form(run, says):
    with pytest.raises(ValueError) as caught:
        run()
    assert str(caught.value) == says


def test_equal_tokens_show_nothing():
    """A mean over equal tokens is no leak to be seen."""
    with pytest.raises(ValueError) as caught:
        testing.check_mixer(Mean(), np.ones((TIME, WIDTH), np.float32))
    assert str(caught.value) == "the tokens of `inputs` must differ: equal tokens hide a dependence on later tokens."


# Comparisons.


def said(compare, got, expected, *bound) -> str:
    (finding,) = compare("law", "array", np.asarray(got), np.asarray(expected), *bound)
    return "" if finding.holds else str(finding)


@pytest.mark.parametrize(
    "got, expected, says",
    [
        ([0.0, 1.0], [-0.0, 1.0], ""),
        ([np.nan, 1.0], [np.nan, 1.0], ""),
        ([np.nan, 1.0], [np.nan, 2.0], "law: array first at [1], got 1 and not 2"),
        (
            [1.0, 2.0],
            [1.0, 4.0],
            "law: array first at [1], got 2 and not 4, relative error #, must be equal bit for bit",
        ),
        ([1.0], [1.0, 2.0], "law: array has shape (1,) and not (2,)"),
    ],
    ids=["the sign of a zero", "the same nan", "beside a nan", "unequal", "another shape"],
)
def test_bit_for_bit(got, expected, says):
    assert matches(says, said(identical, got, expected))


@pytest.mark.parametrize(
    "got, expected, says",
    [
        ([3.0, 4.001], [3.0, 4.0], ""),
        ([3.0, 4.1], [3.0, 4.0], "law: array first at [1], got 4.1 and not 4, relative error 2.00e-02, at most 0.001"),
        ([0.0, 1.0], [0.0, 0.0], "law: array first at [1], got 1 and not 0, at most 0.001"),
        ([1.0, np.nan], [1.0, 2.0], "law: array first at [1], got nan and not 2"),
        ([1.0, np.nan], [1.0, np.nan], "law: array first at [1], got nan both times"),
    ],
    ids=["close", "not close", "not zero", "not a number", "neither a number"],
)
def test_close(got, expected, says):
    assert said(close, got, expected, 1e-3) == says
