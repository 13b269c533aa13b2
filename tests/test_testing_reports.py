"""What `ssmkit.testing` says of a breach: where, by how much, and from which bound on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_names import (
    GRADIENTS,
    REFERENCE,
    STEPS,
)
from lawbreakers import Decaying, Drifting, Mingling, Severed, Smooth, check, features

import ssmkit
from ssmkit import testing
from ssmkit.testing import LawError
from ssmkit.testing._row_law import row_law
from ssmkit.testing._subject import Subject


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


def test_where_and_by_how_much():
    """Sums `(1, 0, 0), (0.5, 2, 0)`; the second is doubled by the step: `|(0.5, 2)| / |(1, 1, 4)|` is off."""
    with pytest.raises(LawError) as caught:
        testing.check_mixer(Drifting(after=1), np.asarray([[1, 0, 0], [0, 2, 0]], np.float32), gradient=1.0)
    assert str(caught.value) == (
        "Drifting breaks 1 of 12 laws checked.\n"
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
