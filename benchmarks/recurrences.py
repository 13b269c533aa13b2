"""Every published recurrence on one CPU: tokens per second of its mixer, and chunks against a plain scan over tokens.

A mixer with random weights consumes random features by `prefill`, and steps through as many one at a time, compiled
into one loop. Its recurrence alone is then timed on the inputs that the mixer gave it: `chunk_scan` against
`jax.lax.scan` over `step`, forwards, and forwards and backwards. No figure is reported unless both give the same
outputs. Figures are medians of repeats that alternate.

Right before it is timed, each program runs once untimed. After another program has returned memory, the system hands
out pages that no cache holds. Touching them takes up to half of a prefill's time.
"""

import inspect
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import ssmkit
from ssmkit import kernels, models

from ._environment import environment
from ._session import bar
from ._timing import Run, alternate


_ERROR = 1e-4  # of the recurrence in chunks against token by token, in float32


def mixers(width: int) -> dict[str, Callable[[jax.Array], ssmkit.AbstractMixer]]:
    """Functions that make a mixer from a random key, at its authors' sizes, by the model's name."""
    heads = width // 64
    return {
        "Mamba": lambda key: models.MambaMixer(width, key=key),
        "Mamba-2": lambda key: models.Mamba2Mixer(width, key=key),
        "Mamba-3": lambda key: models.Mamba3Mixer(width, key=key),
        "Mamba-3 MIMO": lambda key: models.Mamba3Mixer(width, mimo_rank=4, key=key),
        "RetNet": lambda key: models.RetNetMixer(width, num_heads=heads, key=key),
        "mLSTM": lambda key: models.MLSTMMixer(width, num_heads=heads // 2, key=key),
        "GLA": lambda key: models.GLAMixer(width, num_heads=4, key=key),
        "HGRN2": lambda key: models.HGRN2Mixer(width, key=key),
        "RWKV-6": lambda key: models.RWKV6Mixer(width, num_heads=heads, expand_k=1.0, key=key),
        "S5": lambda key: models.S5Mixer(width, key=key),
        "LRU": lambda key: models.LRUMixer(width, key=key),
        "RG-LRU": lambda key: models.RGLRUMixer(width, num_heads=heads, key=key),
    }


def measure(names: Iterable[str] | None, width: int, tokens: int, repeats: int) -> dict[str, Any]:
    """All figures of the mixers of these names, or of all."""
    makers = mixers(width)
    results = {}
    with bar("recurrences") as tick:
        for name in makers if names is None else names:
            tick(name)
            results[name] = _measure(makers[name](jax.random.key(0)), width, tokens, repeats)
    setup = environment("jax", "jaxlib", "equinox")
    return {"environment": setup, "tokens": tokens, "width": width, "results": results}


def _measure(mixer: ssmkit.AbstractMixer, width: int, tokens: int, repeats: int) -> dict[str, Any]:
    """All figures of one mixer.

    **Raises:** `SystemExit` when chunks and single tokens do not give the same outputs.
    """
    x = jax.random.normal(jax.random.key(1), (tokens, width))
    recurrence, inputs, state = captured(mixer, x)
    arguments = recurrence, inputs, state
    runs = {
        "prefill": _compiled(lambda mixer, x: mixer.prefill(x, mixer.init_cache()), mixer, x),
        "steps": _compiled(lambda mixer, x: _steps(mixer, x, mixer.init_cache()), mixer, x),
        "chunks": _compiled(_chunks, *arguments),
        "scan": _compiled(_steps, *arguments),
        "chunks_gradient": _compiled(_gradient(_chunks), arguments),
        "scan_gradient": _compiled(_gradient(_steps), arguments),
    }
    (got, _), (expected, _) = runs["chunks"](), runs["scan"]()
    error = float(jnp.linalg.norm((got - expected).ravel()) / jnp.linalg.norm(expected.ravel()))
    if not error <= _ERROR:
        raise SystemExit(f"{type(mixer).__name__}: chunks and tokens differ by {error:.1e}: no speed is reported")
    times = alternate(
        {name: Run(lambda _, run=run: run(), setup=run) for name, run in runs.items()}, repeats, warm=True
    )
    median = {name: time.median for name, time in times.items()}
    source = pathlib.Path(inspect.getsourcefile(type(mixer)) or "")
    form = jax.eval_shape(jax.vmap(recurrence.coefficients), inputs)
    return {
        "file": f"models/{source.name}",
        "family": kernels.family_of(form).name,
        "prefill_tokens_per_s": tokens / median["prefill"],
        "step_tokens_per_s": tokens / median["steps"],
        "chunks_over_scan": median["scan"] / median["chunks"],
        "chunks_over_scan_gradient": median["scan_gradient"] / median["chunks_gradient"],
        "error": error,
        "seconds": {name: time.seconds for name, time in times.items()},
    }


def captured(mixer: ssmkit.AbstractMixer, x: jax.Array) -> tuple[ssmkit.DiagonalChunkedRecurrence, Any, Any]:
    """The mixer's recurrence, with the inputs and the state that the mixer gives it."""
    assert isinstance(mixer, ssmkit.AbstractRecurrentMixer)
    found = []

    def advance(operator, inputs, state):
        if isinstance(operator, ssmkit.DiagonalChunkedRecurrence):
            found.append((operator, inputs, state))
        return operator.chunk_scan(inputs, state)

    mixer.mix(x, mixer.init_cache(), advance)
    return found[0]


def _chunks(recurrence: ssmkit.DiagonalChunkedRecurrence, inputs: Any, state: Any) -> tuple[Any, Any]:
    return recurrence.chunk_scan(inputs, state)


def _steps(module: Any, inputs: Any, cache: Any) -> tuple[Any, Any]:
    def body(cache, token):
        outputs, cache = module.step(token, cache)
        return cache, outputs

    cache, outputs = jax.lax.scan(body, cache, inputs)
    return outputs, cache


def _gradient(run: Callable) -> Callable:
    """The gradient with respect to the recurrence's parameters, inputs and state."""
    return eqx.filter_grad(lambda arguments: jnp.sum(jnp.real(run(*arguments)[0])))


def _compiled(function: Callable, *arguments: Any) -> Callable[[], Any]:
    compiled = eqx.filter_jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = [
        "| model | file | kernel family | prefill, tokens/s | step, tokens/s | chunks : scan | and gradients |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for name, row in results.items():
        lines.append(
            f"| {name} | `{row['file']}` | {row['family']} | {row['prefill_tokens_per_s']:,.0f} "
            f"| {row['step_tokens_per_s']:,.0f} | {row['chunks_over_scan']:.1f} "
            f"| {row['chunks_over_scan_gradient']:.1f} |"
        )
    return "\n".join(lines)
