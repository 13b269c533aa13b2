"""The findings of a check, and the report about them."""

import sys
from typing import Any, NamedTuple

import jax
import numpy as np


class Finding(NamedTuple):
    """One comparison: its subject, its error, and the first place of the error."""

    law: str
    what: str
    error: float
    bound: float
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether the error is within the bound."""
        return self.error <= self.bound

    def __str__(self) -> str:
        if self.error == np.inf:
            return f"{self.law}: {self.what}{self.where or ' is not finite'}"
        bound = "must be equal bit for bit" if self.bound == 0.0 else f"at most {self.bound:g}"
        error = f", relative error {self.error:.2e}" if self.error < 1e9 else ""  # to zero, none is relative
        return f"{self.law}: {self.what}{self.where}{error}, {bound}"


class Report(NamedTuple):
    """Every finding of one check, in the order of the laws."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The first broken finding of every broken law."""
        first = {}
        for finding in self.findings:
            if not finding.holds:
                first.setdefault(finding.law, finding)
        return tuple(first.values())

    def __str__(self) -> str:
        laws = dict.fromkeys(finding.law for finding in self.findings)
        if self.broken:
            lines = [f"{self.name} breaks {len(self.broken)} of {len(laws)} laws checked."]
            return "\n".join(lines + [f"  - {finding}" for finding in self.broken])
        lines = [f"{self.name} keeps {len(laws)} laws."]
        for law in laws:
            found = [finding for finding in self.findings if finding.law == law]
            worst = max(finding.error for finding in found)
            error = "exact" if worst == 0.0 else f"worst relative error {worst:.1e}"
            lines.append(f"  - {law}: {error}, {len(found)} compared")
        return "\n".join(lines)


class LawError(AssertionError):
    """The error for broken laws. The message is the report, which is also the attribute `report`."""

    def __init__(self, report: Report):
        super().__init__(str(report))
        self.report = report


def relative_error(got: Any, expected: Any) -> float:
    """`|got - expected| / |expected|` in the Euclidean norm over the whole array; infinite unless `got` is finite.

    Numbers too small for float32 count as zero.
    """
    got, expected = widened(got), widened(expected)
    if got.shape != expected.shape or not np.isfinite(got).all() or not np.isfinite(expected).all():
        return np.inf
    return float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) + 1e-30))


def close(law: str, what: str, got: Any, expected: Any, bound: float) -> list[Finding]:
    """A finding for every leaf of two trees that should be equal within `bound`."""
    return _leaves(law, what, got, expected, bound, relative_error)


def identical(law: str, what: str, got: Any, expected: Any) -> list[Finding]:
    """A finding for every leaf of two trees that should be equal bit for bit, except for the sign of a zero."""

    def error(a, b):
        same = a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
        return 0.0 if same else max(relative_error(a, b), sys.float_info.min)

    return _leaves(law, what, got, expected, 0.0, error)


def finite(law: str, what: str, tree: Any) -> list[Finding]:
    """A finding for every leaf that should hold neither NaN nor infinity."""
    found = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        leaf, name = widened(leaf), what + jax.tree_util.keystr(path)
        where = ""
        if not np.isfinite(leaf).all():
            index = tuple(np.argwhere(~np.isfinite(leaf))[0].tolist())
            where = f" is {leaf[index]:g} first at {list(index)}"
        found.append(Finding(law, name, np.inf if where else 0.0, 0.0, where))
    return found


def _leaves(law, what, got, expected, bound, error) -> list[Finding]:
    if (structures := (jax.tree.structure(got), jax.tree.structure(expected)))[0] != structures[1]:
        where = f" has the structure {structures[0]} and not {structures[1]}"
        return [Finding(law, what, np.inf, bound, where)]
    found = []
    for (path, b), a in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        finding = Finding(law, what + jax.tree_util.keystr(path), error(a, b), bound)
        found.append(finding if finding.holds else finding._replace(where=_first(a, b, bound)))
    return found


def _first(got: Any, expected: Any, bound: float) -> str:
    """The first index at which two arrays differ by more than `bound` times the typical entry."""
    got, expected = widened(got), widened(expected)
    if got.shape != expected.shape:
        return f" has shape {got.shape} and not {expected.shape}"
    finite = expected[np.isfinite(expected)]
    typical = float(np.sqrt(np.mean(np.abs(finite) ** 2))) if finite.size else 0.0
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        off = ~(np.abs(got - expected) <= bound * typical) if bound else ~same
    if not off.any():
        return ""
    index = tuple(np.argwhere(off)[0].tolist())
    but = "both times" if same[index] else f"and not {expected[index]:.6g}"
    return f" first at {list(index)}, got {got[index]:.6g} {but}"


def widened(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
