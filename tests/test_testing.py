"""`ssmkit.testing` catches what it promises: every class here is wrong in one way, and a sibling without it passes."""

import re

import jax
import jax.numpy as jnp
import pytest
from law_names import (
    CAUSAL,
    CHUNKS,
    FINITE,
    FORM,
    FORWARD,
    GRADIENTS,
    IDENTITY,
    INVALID,
    LOG_DECAY,
    NUMBER,
    PADDING,
    REFERENCE,
    ROOM,
    ROWS,
    SPLITS,
    STARTS,
    STEPS,
    matches,
)
from lawbreakers import (
    Decaying,
    Drifting,
    Forgetful,
    ForgetsForRoom,
    IgnoresLength,
    IgnoresStarts,
    IgnoresValid,
    Mean,
    Next,
    NotANumberInPadding,
    Peeking,
    ReadsChunkSize,
    Reformed,
    Severed,
    Smooth,
    Sum,
    Unnormalised,
    Unpadded,
    WeakFromTheStart,
    check,
    counting,
)
from lawbreaking_models import AnotherForward, LeakingForward, LogitsOfThePadding, LogitsOneTokenEarly, Model, model

from ssmkit.testing import LawError


ALL = {ROOM, ROWS, FORM, IDENTITY, STEPS, SPLITS, PADDING, CAUSAL, STARTS, INVALID, GRADIENTS, FINITE}

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
    "a past lost for room": (
        ForgetsForRoom,
        {ROOM},
        f"{ROOM}: reserve(cache, tokens)['count'] first at [], got 0 and not 3, relative error 1.00e+00, "
        "must be equal bit for bit",
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
