"""The public checks of all laws, one function per kind of class."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int, PyTree

from .._ids import read_ids
from .._language_model import AbstractLanguageModel
from .._types import checks_itself, real, shown
from ..mixers._mixer import AbstractMixer
from ..operators._operator import AbstractSequenceOperator
from ..operators._recurrence import DiagonalChunkedRecurrence
from . import _laws as laws, _recurrence_laws as recurrence_laws
from ._report import Finding, LawError, Report
from ._room_law import room_law
from ._row_law import row_law
from ._subject import Subject, to_numpy


_EXTREMES = (0.0, 100.0, 1000.0)
_CHUNK_SIZE = 3  # no usual one, and no divisor of a usual number of tokens


@checks_itself
def check_operator(
    operator: AbstractSequenceOperator, inputs: PyTree[ArrayLike], *, tolerance: float = 1e-5, gradient: float = 5e-5
) -> Report:
    """Check the laws of `ssmkit.AbstractSequenceOperator` on your own class.

    The laws: many tokens equal iterated steps, in values and gradients; a sequence may be split anywhere; padding is
    the identity; the state keeps its form; chunk sizes do not matter; no output depends on later inputs; rows of a
    batch are independent; and everything stays finite for inputs of zero, and of 100 and 1000 times their size.

    **Arguments:**

    - `operator`: an instance with random, non-zero parameters, because zero parameters satisfy many laws trivially.
    - `inputs`: the inputs of at least 2 tokens, not all equal: any pytree of arrays with a leading `time` axis. Ten to
        a hundred random tokens suffice.
    - `tolerance`: the bound on the relative error of values, in the Euclidean norm of each array. The default suits
        float32.
    - `gradient`: the same bound for gradients.

    **Returns:** a `Report` of all comparisons, with the worst error of each law. Print it to read it.

    **Raises:** `LawError` with the broken laws, the first place where each breaks, and the error there; `TypeError` or
    `ValueError` when `operator` is of another kind, or when `inputs` are too short or all equal.
    """
    _check_bounds(tolerance, gradient)
    subject = _subject(operator, AbstractSequenceOperator, inputs)
    return _concluded(subject, _findings(subject, tolerance, gradient))


@checks_itself
def check_recurrence(
    recurrence: DiagonalChunkedRecurrence,
    inputs: PyTree[ArrayLike],
    *,
    tolerance: float = 1e-5,
    gradient: float = 5e-5,
) -> Report:
    """Check the laws of `ssmkit.DiagonalChunkedRecurrence` on your own class.

    The laws are those of `check_operator` and two more. The logarithm of the decay is at most 0. The chunked scan
    equals the token-by-token reference in float64, in values and gradients.

    **Arguments:**, **Returns:** and **Raises:** as `check_operator`.
    """
    _check_bounds(tolerance, gradient)
    subject = _subject(recurrence, DiagonalChunkedRecurrence, inputs)
    coefficients = recurrence_laws.coefficients_of(subject, subject.inputs)
    findings = recurrence_laws.log_decay(coefficients)
    if findings[0].holds:  # what grows without bound breaks every other law too
        findings += _findings(subject, tolerance, gradient)
        state = subject.warm(subject.time)
        findings += recurrence_laws.reference(subject, subject.inputs, state, coefficients, tolerance, gradient)
    return _concluded(subject, findings)


@checks_itself
def check_mixer(
    mixer: AbstractMixer[Any], x: Float[ArrayLike, "time width"], *, tolerance: float = 1e-5, gradient: float = 5e-5
) -> Report:
    """Check the laws of `ssmkit.AbstractMixer`, which are the cache protocol, on your own class.

    **Arguments:** as `check_operator`, but the inputs are the features `x` of some tokens.

    **Returns:** and **Raises:** as `check_operator`.
    """
    _check_bounds(tolerance, gradient)
    subject = _subject(mixer, AbstractMixer, x)
    _check_features(x)
    return _concluded(subject, _findings(subject, tolerance, gradient))


@checks_itself
def check_model(
    model: AbstractLanguageModel[Any],
    tokens: Int[ArrayLike, " time"],
    *,
    tolerance: float = 1e-5,
    gradient: float = 5e-5,
) -> Report:
    """Check the laws of `ssmkit.AbstractLanguageModel` on your own class.

    The laws are those of `check_mixer` with logits as outputs, and one more: `forward` gives the logits of every step.

    **Arguments:** as `check_operator`, but the inputs are some token ids.

    **Returns:** and **Raises:** as `check_operator`.
    """
    _check_bounds(tolerance, gradient)
    subject = _subject(model, AbstractLanguageModel, tokens)
    read_ids("`tokens`", tokens, "time")
    return _concluded(subject, _findings(subject, tolerance, gradient))


def _check_bounds(tolerance: Any, gradient: Any) -> None:
    for name, bound in (("tolerance", tolerance), ("gradient", gradient)):
        if not (real(bound) or 0.0) > 0.0:
            raise ValueError(f"`{name}` must be a number above 0, got {shown(bound)}.")


def _check_features(x: Any) -> None:
    shape, dtype = jnp.shape(x), jnp.asarray(x).dtype
    if len(shape) != 2 or not jnp.issubdtype(dtype, np.floating):
        raise ValueError(f"`x` must be floating point of shape (time, width), got {dtype} of shape {shape}.")


def _subject(module: Any, kind: type, inputs: Any) -> Subject:
    """Check the module and its inputs, and prepare them for the laws."""
    if not isinstance(module, kind):
        raise TypeError(f"expected an instance of `ssmkit.{kind.__name__}`, got {type(module).__name__}.")
    try:
        inputs = to_numpy(jax.tree.map(jnp.asarray, inputs))
    except (TypeError, ValueError):
        raise ValueError(
            f"`inputs` must be a pytree of arrays with a leading axis (time), got {shown(inputs)}."
        ) from None
    leaves = jax.tree.leaves(inputs)
    shapes = [leaf.shape for leaf in leaves]
    times = {shape[:1] for shape in shapes}
    if len(times) != 1 or () in times or next(iter(times))[0] < 2:
        raise ValueError(
            "every array of `inputs` must have the same leading axis (time), of at least 2 tokens, got shapes "
            f"{shapes}."
        )
    if not all(np.isfinite(leaf).all() for leaf in leaves if np.issubdtype(leaf.dtype, np.inexact)):
        raise ValueError("`inputs` must be finite: NaN or infinity in them would be reported as a fault of your class.")
    if all((leaf == leaf[:1]).all() for leaf in leaves):
        raise ValueError("the tokens of `inputs` must differ: equal tokens hide a dependence on later tokens.")
    return Subject(module, inputs)


def _findings(subject: Subject, tolerance: float, gradient: float) -> list[Finding]:
    """The findings of every common law on a few examples: with and without a past, at the ends and in between."""
    time, inputs = subject.time, subject.inputs
    found = laws.form(subject, inputs)
    if not all(finding.holds for finding in found):  # what changes its form cannot be iterated
        return found
    for past in (0, time // 2):
        cache = subject.warm(past)
        found += laws.identity(subject, inputs, cache)
        for point in sorted({1, time // 3, time // 2, time - 1, time}):
            found += laws.causality(subject, inputs, cache, point)
            found += laws.many_equal_steps(subject, inputs, cache, point, tolerance)
            found += laws.splits(subject, inputs, cache, point, tolerance)
            found += laws.padding(subject, inputs, cache, point)
        for begins, length in (([0], time), ([time // 3, time // 3 + 1], time - 1), ([1, time - 1], time - 1)):
            found += laws.starts(subject, inputs, cache, sorted(set(begins)), length, tolerance)
        found += laws.invalid_steps(subject, inputs, cache, np.arange(time) % 3 != 1)
    cache = subject.warm(time // 2)
    found += row_law(subject, inputs, [cache, subject.warm(1), subject.init], tolerance)
    found += room_law(subject, inputs, cache, tolerance)
    found += laws.unmasked(subject, inputs, cache, tolerance)
    found += laws.chunk_sizes(subject, inputs, cache, _CHUNK_SIZE, tolerance)
    found += laws.gradients(subject, inputs, cache, max(time - 2, 1), gradient)
    for scale in _EXTREMES if not subject.last_only else (1.0,):
        found += laws.extremes(subject, inputs, cache, scale)
    if subject.last_only:
        found += laws.forward(subject, inputs, subject.warm(2), tolerance)
    return found


def _concluded(subject: Subject, findings: list[Finding]) -> Report:
    report = Report(type(subject.module).__name__, tuple(findings))
    if report.broken:
        raise LawError(report)
    return report
