"""Kernels that are compiled once, beside the float64 token loop, and how far apart they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from helpers import jit, relative_error

from ssmkit import kernels


# Float32 resolves 6e-8. The worst seen is 5e-7, where 67 decays near 1 follow one another; mostly it is 1e-7.
BOUND = 2e-6
HEADS, KEY, VALUE = 4, 5, 3
SCHEDULES = {"serial": kernels.serial, "parallel": kernels.parallel}
RESULTS = ("outputs", "final", "d log_decay", "d write", "d value", "d read", "d bonus", "d state")


def with_gradients(kernel, jit=jit):
    """A jitted function to outputs, final state, and gradients in everything, from cotangents of both."""

    @jit
    def run(coefficients, state, cotangents):
        results, pull = jax.vjp(kernel, coefficients, state)
        d_coefficients, d_state = pull(cotangents)
        fields = ("log_decay", "write", "value", "read", "bonus")
        return (*results, *(getattr(d_coefficients, field) for field in fields), d_state)

    return run


def in_chunks(chunk: int | None, schedule=None, kernel=kernels.chunk_scan):
    """A kernel that runs in chunks of so many tokens, in this order: side by side as it would on an accelerator."""

    def run(*arguments, **keywords):
        platform = "tpu" if schedule is kernels.parallel else "cpu"
        with kernels.target(platform), kernels.tuned(chunk_size=chunk, schedule=schedule):
            return kernel(*arguments, **keywords)

    return run


@functools.cache
def scan(schedule: str, chunk: int):
    """`chunk_scan`, compiled once per shape."""
    return jit(in_chunks(chunk, SCHEDULES[schedule]))


@functools.cache
def scan_with_gradients(schedule: str, chunk: int, jit=jit):
    """Likewise."""
    return with_gradients(in_chunks(chunk, SCHEDULES[schedule]), jit)


STEP = jit(kernels.step)
REFERENCE = jit(kernels.reference)
REFERENCE_WITH_GRADIENTS = with_gradients(kernels.reference)


def cotangents_of(seed, outputs, state):
    rng = np.random.default_rng(seed)
    draw = lambda array: rng.normal(size=array.shape) + 1j * rng.normal(size=array.shape)
    real = lambda array: array if jnp.iscomplexobj(state) else array.real
    return tuple(jnp.asarray(real(draw(array)), array.dtype) for array in (outputs, state))


def in_float64(tree):
    wide = lambda array: jnp.complex128 if jnp.iscomplexobj(array) else jnp.float64
    return jax.tree.map(lambda array: array.astype(wide(array)), tree)


def errors(run, *arguments) -> dict[str, float]:
    """The relative error of each result against the float64 reference."""
    results = run(*arguments), REFERENCE_WITH_GRADIENTS(*in_float64(arguments))
    named = zip(RESULTS, *results, strict=True)
    return {name: relative_error(*pair) for name, *pair in named if pair != [None, None]}


def decays_of_differences(x):
    """The usual decays, of differences that cancel."""
    total = jnp.cumsum(x, axis=-1)
    difference = total[..., :, None] - total[..., None, :]
    lower = jnp.tri(x.shape[-1], dtype=bool)
    return jnp.exp(jnp.where(jnp.broadcast_to(lower, difference.shape), difference, -jnp.inf))
