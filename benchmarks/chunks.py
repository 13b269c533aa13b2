"""Measurements of chunk sizes and schedules, from which the table in `ssmkit/kernels/_tuning.py` was made.

The recurrences of published models run over the inputs that their mixers give them, forwards, and forwards and
backwards, in chunks of every size, one after the other (serial) and side by side (parallel). No figure is reported
unless all give the same outputs. Figures are medians, relative to the fastest of the row.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit import kernels

from ._environment import environment
from ._session import bar
from ._timing import Run, alternate
from .recurrences import captured, mixers


_SCHEDULES = {"serial": kernels.serial, "parallel": kernels.parallel}
# The defaults of the measurement.
NAMES = ["Mamba-2", "RetNet", "mLSTM", "GLA", "RWKV-6", "Mamba", "S5", "RG-LRU"]
_ERROR = 1e-4


def measure(names: Iterable[str], width: int, tokens: int, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """All times of the recurrences of these names."""
    results = {}
    with bar("chunks") as tick:
        for name in names:
            tick(name)
            results[name] = _measure(name, width, tokens, sizes, repeats)
    return {"tokens": tokens, "width": width, "environment": environment("jax", "jaxlib"), "results": results}


def _measure(name: str, width: int, tokens: int, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """All times of one recurrence.

    **Raises:** `SystemExit` when two sizes or schedules differ.
    """
    mixer = mixers(width)[name](jax.random.key(0))
    arguments = captured(mixer, jax.random.normal(jax.random.key(1), (tokens, width)))
    recurrence, inputs, _ = arguments
    runs, outputs = {}, {}
    for schedule in _SCHEDULES:
        for size in sizes:
            forwards = _compiled(_forwards, schedule, size, arguments)
            outputs[schedule, size] = forwards()
            runs[schedule, size, "forwards"] = Run(lambda _, run=forwards: run())
            run = _compiled(_gradient, schedule, size, arguments)
            runs[schedule, size, "gradients"] = Run(lambda _, run=run: run())
    expected = next(iter(outputs.values()))
    for (schedule, size), got in outputs.items():
        error = float(jnp.linalg.norm((got - expected).ravel()) / jnp.linalg.norm(expected.ravel()))
        if not error <= _ERROR:
            raise SystemExit(f"{name}: {schedule} chunks of {size} differ by {error:.1e}: no speed is reported")
    times = alternate(runs, repeats)
    form = jax.eval_shape(jax.vmap(recurrence.coefficients), inputs)
    return {
        "family": kernels.family_of(form).name,
        "state_shape": recurrence.state_shape,
        "times": [
            {"schedule": schedule, "size": size, "what": what, "ms": 1e3 * taken.median, "seconds": taken.seconds}
            for (schedule, size, what), taken in times.items()
        ],
    }


def _forwards(recurrence: Any, inputs: Any, state: Any) -> jax.Array:
    return recurrence.chunk_scan(inputs, state)[0]


def _gradient(*arguments: Any) -> Any:
    return eqx.filter_grad(lambda arguments: jnp.sum(jnp.abs(_forwards(*arguments)) ** 2))(arguments)


def _compiled(function: Callable[..., Any], schedule: str, size: int, arguments: Any) -> Callable[[], Any]:
    with kernels.tuned(chunk_size=size, schedule=_SCHEDULES[schedule]):
        executable = eqx.filter_jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(executable(*arguments))


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown, with a row per recurrence, direction and schedule."""
    sizes = sorted({time["size"] for result in results.values() for time in result["times"]})
    lines = [
        f"| | state | | order | {' | '.join(map(str, sizes))} |",
        f"|---|---|---|---|{'--:|' * len(sizes)}",
    ]
    for name, result in results.items():
        shape = " x ".join(map(str, result["state_shape"]))
        for what in ("forwards", "gradients"):
            found = {(t["schedule"], t["size"]): t["ms"] for t in result["times"] if t["what"] == what}
            best = min(found.values())
            for schedule in _SCHEDULES:
                cells = " | ".join(f"{found[schedule, size] / best:.1f}" for size in sizes)
                lines.append(f"| {name} | {shape} | {what} | {schedule} | {cells} |")
    return "\n".join(lines)
