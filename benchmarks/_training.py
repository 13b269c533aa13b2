"""A training step of every library that can train, and its times in a fresh process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import ssmkit

from ._geometry import GEOMETRIES
from ._memory import device_bytes, peak_bytes, reset_peak, resident_bytes
from ._timing import Run, alternate


def time_steps(subject: str, geometry: str, directory: str, batch: int, length: int, repeats: int) -> dict[str, Any]:
    """The seconds of forward and backward passes, the loss, the norm of its gradient, and the peak memory.

    There are two figures of memory. One is the growth of resident memory from before the first step to its peak,
    without compilation. The other is the compiler's plan for arguments, results and temporaries.
    """
    ids = np.random.default_rng(0).integers(0, GEOMETRIES[geometry].vocab_size, (batch, length)).astype(np.int32)
    step, parameters = STEPS[subject](Path(directory), batch, length)
    plan = step.memory_analysis()
    tokens = jax.device_put(ids)
    before = resident_bytes()
    reset_peak()
    call = lambda given: jax.block_until_ready(step(parameters, tokens))
    loss, norm = call(None)
    times = alternate({"step": Run(call)}, repeats, warm=True)
    return {
        "seconds": times["step"].seconds,
        "loss": float(loss),
        "gradient_norm": float(norm),
        "peak_bytes": device_bytes().get("peak_bytes_in_use") or peak_bytes() - before,
        "program_bytes": plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes,
    }


def _ours(directory: Path, batch: int, length: int) -> tuple[Any, Any]:
    model = ssmkit.from_pretrained(directory, dtype="float32")
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss(parameters: Any, tokens: jax.Array) -> jax.Array:
        model = eqx.combine(parameters, rest)
        each = jax.vmap(lambda row: ssmkit.cross_entropy(model(row)[:-1], row[1:]))(tokens)
        return jnp.mean(each)

    return _step(loss, parameters, batch, length)


def _mamba2_jax(directory: Path, batch: int, length: int) -> tuple[Any, Any]:
    from flax import nnx

    from .peers.mamba2jax import load

    graph, weights = load(directory)

    def loss(weights: Any, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graph, weights)(tokens, labels=tokens)["loss"]

    return _step(loss, weights, batch, length)


def _step(loss: Callable, parameters: Any, batch: int, length: int) -> tuple[Any, Any]:
    """The compiled step, loss and norm of the gradient (for which every entry is computed), and its parameters."""

    def step(parameters: Any, tokens: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(parameters, tokens)
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient))
        return value, jnp.sqrt(squares)

    shape = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    compiled = jax.jit(step).lower(parameters, shape).compile()
    return compiled, parameters


STEPS: dict[str, Callable[[Path, int, int], tuple[Any, Any]]] = {"ssmkit": _ours, "mamba2-jax": _mamba2_jax}
