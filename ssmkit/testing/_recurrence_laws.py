"""The laws of recurrences only: on their coefficients, and on the token-by-token reference in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import kernels
from ..kernels._coefficients import Coefficients
from ..operators._recurrence import DiagonalChunkedRecurrence
from ._report import Finding, close
from ._subject import Subject, jit, to_numpy


def coefficients_of(subject: Subject, inputs: Any) -> Coefficients:
    """The coefficients of every token, as NumPy arrays."""
    module = subject.module
    assert isinstance(module, DiagonalChunkedRecurrence)
    return to_numpy(jit(lambda inputs: module._checked_all(inputs))(inputs))


def log_decay(coefficients: Coefficients) -> list[Finding]:
    """The real part of `log_decay` is at most 0: a state never grows by itself."""
    real = np.real(np.asarray(coefficients.log_decay, np.complex128))
    law = "log_decay is at most 0"
    if not (real > 0).any() and not np.isnan(real).any():
        return [Finding(law, "log_decay", 0.0, 0.0)]
    index = tuple(int(i) for i in np.argwhere(~(real <= 0))[0])
    hint = ""
    if ((real >= 0) & (real <= 1)).all():
        hint = ": it lies in [0, 1], so this is the decay itself: return its logarithm"
    return [Finding(law, "log_decay", np.inf, 0.0, f" is {real[index]:.6g} at {list(index)}{hint}")]


def reference(
    subject: Subject, inputs: Any, state: Any, coefficients: Coefficients, bound: float, gradient_bound: float
) -> list[Finding]:
    """The chunked scan equals the token-by-token reference in float64, in values and gradients."""
    law = "many tokens equal the float64 reference"
    outputs, final = subject.many(inputs, state, subject.time)
    cotangents = _cotangents(outputs), _cotangents(final)
    most = subject.module.chunk_size

    def scan(coefficients, state):
        return kernels.chunk_scan_of(lambda tokens: tokens, coefficients, state, most=most)

    _, got = to_numpy(jit(_with_gradients(scan))(coefficients, state, cotangents))
    with jax.enable_x64(True):
        expected, expected_gradients = to_numpy(jit(_with_gradients(_wide_reference))(coefficients, state, cotangents))
    found = close(law, "outputs", outputs, expected[0], bound) + close(law, "state", final, expected[1], bound)
    for name, a, b in zip(("d coefficients", "d state"), got, expected_gradients, strict=True):
        found += close(law, name, a, b, gradient_bound)
    return found


def _with_gradients(kernel):
    def run(coefficients, state, cotangents):
        results, pull = jax.vjp(kernel, coefficients, state)
        return results, pull(
            jax.tree.map(lambda cotangent, result: cotangent.astype(result.dtype), cotangents, results)
        )

    return run


def _cotangents(array: np.ndarray) -> np.ndarray:
    return np.cos(np.arange(array.size)).reshape(array.shape).astype(array.dtype)


def _wide_reference(coefficients, state):
    dtype = jnp.complex128 if jnp.iscomplexobj(state) else jnp.float64
    return kernels.reference(*jax.tree.map(lambda array: array.astype(dtype), (coefficients, state)))
