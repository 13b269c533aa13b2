"""The error of decoding: many tokens at slow decays, one by one and in chunks, against a loop in float64.

Every kernel family gets random writes, values and reads, and one constant decay per head. Every number is the error of
the last state, relative to its Euclidean norm. `float32 state` is the least possible error if a state is rounded to
float32 after every token: all else is float64. `rounded decay` is the usual loop in float32, `S = exp(a) * S + b`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ssmkit
from ssmkit import kernels

from ._environment import environment


DECAYS = (-1e-6, -1e-5, -1e-4, -1e-3, -1e-2)
ANGLES = (0.3, 3.0, 1e-3, 1.0, 2.0)
# Keys, values, log-decays per head, and whether they turn.
FORMS = {
    "K1": (4, 4, 1, False),
    "K2": (4, 4, 4, False),
    "K3": (4, 1, 4, False),
    "K1, complex": (4, 4, 1, True),
    "K2, complex": (4, 4, 4, True),
    "K3, complex": (4, 1, 4, True),
}


def coefficients(form: str, tokens: int) -> ssmkit.Coefficients:
    """The coefficients of many tokens, with one head for each decay."""
    key, value, decays, is_complex = FORMS[form]
    rng = np.random.default_rng(0)
    a = np.repeat(np.asarray(DECAYS)[:, None], decays, axis=1)
    a = a + 1j * np.asarray(ANGLES)[:, None] if is_complex else a
    dtype = np.complex64 if is_complex else np.float32
    heads = len(DECAYS)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(tokens, *shape)).astype(dtype))
    log_decay = jnp.broadcast_to(jnp.asarray(a.astype(dtype)), (tokens, heads, decays))
    return jax.vmap(ssmkit.Coefficients)(log_decay, draw(heads, key), draw(heads, value), draw(heads, key))


def one_by_one(c: ssmkit.Coefficients, state: jax.Array) -> jax.Array:
    """The state after `kernels.step` for every token."""
    return jax.lax.scan(lambda state, token: (kernels.step(token, state)[1], None), state, c)[0]


def rounded(c: ssmkit.Coefficients, state: jax.Array) -> jax.Array:
    """The state after the usual loop in float32."""
    return kernels.reference(c, state)[1]


def in_chunks(c: ssmkit.Coefficients, state: jax.Array) -> jax.Array:
    """The state after `kernels.chunk_scan`."""
    return kernels.chunk_scan(c, state)[1]


def in_numpy(c: ssmkit.Coefficients, keep: type) -> np.ndarray:
    """The state of a loop in float64, kept in this dtype from token to token."""
    wide = np.complex128 if np.iscomplexobj(c.value) else np.float64
    decay = np.exp(np.asarray(c.log_decay[0]).astype(wide))[:, :, None]
    write, value = (np.asarray(x).astype(wide) for x in (c.write, c.value))
    state = np.zeros((*write.shape[1:], value.shape[-1]), keep)
    for k, v in zip(write, value, strict=True):
        state = (decay * state.astype(wide) + k[:, :, None] * v[:, None, :]).astype(keep)
    return state


def measure(tokens: int) -> dict[str, Any]:
    """The errors of every form."""
    results = {form: _measure(form, tokens) for form in FORMS}
    setup = environment("jax", "jaxlib")
    return {"environment": setup, "tokens": tokens, "decays": DECAYS, "angles": ANGLES, "results": results}


def _measure(form: str, tokens: int) -> dict[str, list[float]]:
    """The errors of every way, one per decay."""
    c = coefficients(form, tokens)
    complex_ = FORMS[form][3]
    expected = in_numpy(c, np.complex128 if complex_ else np.float64)
    start = jnp.zeros(expected.shape, jnp.complex64 if complex_ else jnp.float32)
    ways: dict[str, Callable[[], Any]] = {
        "float32 state": lambda: in_numpy(c, np.complex64 if complex_ else np.float32),
        "step": lambda: jax.jit(one_by_one)(c, start),
        "chunk_scan": lambda: jax.jit(in_chunks)(c, start),
        "rounded decay": lambda: jax.jit(rounded)(c, start),
    }
    norm = lambda array: np.linalg.norm(array.reshape(len(DECAYS), -1), axis=1)
    return {name: (norm(np.asarray(run()) - expected) / norm(expected)).tolist() for name, run in ways.items()}


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """The results in Markdown."""
    lines = ["| family | computed by |" + "".join(f" $a = {decay:g}$ |" for decay in DECAYS)]
    lines.append("|---|---|" + "--:|" * len(DECAYS))
    for form, ways in results.items():
        for way, errors in ways.items():
            lines.append(f"| {form} | {way} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
    return "\n".join(lines)
