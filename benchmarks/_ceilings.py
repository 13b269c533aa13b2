"""The best rates of the machine: matrix-vector products, matrix products, and reading memory.

Each rate is measured in several forms, and the best counts. Matrices for products with a vector together have the size
of the model, and on an accelerator that of a large one, so that no cache holds them. They are multiplied in one
dispatch, as a model's matrices are. The runs of other libraries lie between these runs, so that any disturbance affects
all of them. An accelerator is asked several times before the host waits, because the answer to one question would come
in less time than the host takes to ask.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmkit.compilation import DEVICES

from ._environment import device, on_cpu
from ._timing import Run, Times


# Devices whose published figures are known, by JAX's name of each.
_KINDS = {
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100",
    "TPU v5": "v5p",
    "TPU v5 lite": "v5e",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}
_SHAPES = {  # of matrix products: rows, inner, columns
    "cpu": [(2048, 768, 3352), (2048, 2048, 2048), (4096, 4096, 4096)],
    "accelerator": [(2048, 2560, 10576), (8192, 8192, 8192)],
}
_TIMES = 8  # that an accelerator is asked


def probes(nbytes: int, width: int, most: int | None = None) -> tuple[dict, Callable[[dict], dict[str, float]]]:
    """The measurements as runs, and a function that turns their times into rates.

    **Arguments:**

    - `nbytes`: the bytes of all matrices for products with a vector together.
    - `width`: the number of columns of these matrices.
    - `most`: the largest side of a matrix product, for tests.

    **Returns:** runs by name, each a tuple that starts with `"ceiling"`; and a function from their `Times` to the best
    bytes per second of `matvec` and `read` and FLOPs per second of `matmul`.
    """
    runs: dict[tuple, Run] = {}
    work: dict[tuple, float] = {}

    times = 1 if on_cpu() else _TIMES

    def add(kind: str, form: str, amount: float, call: Callable[[], Any]) -> None:
        name = ("ceiling", kind, form)
        work[name] = times * amount
        runs[name] = Run(lambda given: jax.block_until_ready([call() for _ in range(times)]))

    for dtype in ("float32",) if on_cpu() else ("float32", "bfloat16"):
        _vectors(add, nbytes, width, dtype)
        _products(add, dtype, most)
    return runs, functools.partial(_rates, work)


def _rates(work: dict[tuple, float], times: dict[Any, Times]) -> dict[str, float]:
    best: dict[str, float] = {}
    for name in [name for name in work if name in times]:
        best[name[1]] = max(best.get(name[1], 0.0), work[name] / times[name].median)
    return best | published(device()["kind"])


def published(kind: str) -> dict[str, float]:
    """The published bfloat16 FLOP/s and bytes/s of a device, by JAX's name of it; empty if they are not known."""
    if kind not in _KINDS:
        return {}
    found = DEVICES[_KINDS[kind]]
    return {"sheet_matmul": found.flops, "sheet_matvec": found.bandwidth}


def _vectors(add: Callable, nbytes: int, width: int, dtype: str) -> None:
    """The product of each of many matrices with a vector, and the sum of all elements of the matrices."""
    suffix = "" if dtype == "float32" else f"_{dtype}"
    rows = 50288 if nbytes > 50288 * width * 4 else max(nbytes // (8 * width), 1)
    element = jnp.dtype(dtype).itemsize
    count = max(round(nbytes / (rows * width * element)), 1)
    weight = _random((rows, width))
    weights = [(weight + i).astype(dtype) for i in range(count)]
    vector = jnp.ones(width, dtype)
    total = float(count * rows * width * element)
    wide = jnp.float32

    @jax.jit
    def einsum(weights: Any, vector: jax.Array) -> Any:
        return [jnp.einsum("ed,d->e", weight, vector, preferred_element_type=wide) for weight in weights]

    @jax.jit
    def fused(weights: Any, vector: jax.Array) -> Any:
        return [jnp.sum(weight.astype(wide) * vector.astype(wide), axis=1) for weight in weights]

    @jax.jit
    def read(weights: Any) -> Any:
        return [jnp.sum(weight, dtype=wide) for weight in weights]

    add(f"matvec{suffix}", "jax einsum", total, lambda: einsum(weights, vector))
    add(f"matvec{suffix}", "jax sum", total, lambda: fused(weights, vector))
    add(f"read{suffix}", "jax sum", total, lambda: read(weights))
    if torch := _torch():
        theirs = [torch.from_numpy(np.array(weight)) for weight in weights]
        ones = torch.ones(width)
        add("matvec", "torch mv", total, lambda: [torch.mv(weight, ones) for weight in theirs])
        add("read", "torch sum", total, lambda: [weight.sum() for weight in theirs])


def _products(add: Callable, dtype: str, most: int | None) -> None:
    """The product of two matrices."""
    suffix = "" if dtype == "float32" else f"_{dtype}"
    product = jax.jit(functools.partial(jnp.matmul, precision="highest" if dtype == "float32" else None))
    for shape in _SHAPES["cpu" if on_cpu() else "accelerator"]:
        rows, inner, columns = (min(side, most or side) for side in shape)
        a, b = _random((rows, inner)).astype(dtype), _random((inner, columns)).astype(dtype)
        flops = 2.0 * rows * inner * columns
        call = functools.partial(product, a, b)
        add(f"matmul{suffix}", f"jax {shape}", flops, call)
        if torch := _torch():
            ours = torch.from_numpy(np.array(a)), torch.from_numpy(np.array(b))
            add("matmul", f"torch {shape}", flops, lambda ours=ours, torch=torch: torch.mm(*ours))


def _random(shape: tuple[int, int]) -> jax.Array:
    """Random numbers, made on the device: chips that are limited by power multiply equal numbers faster."""
    return jax.random.normal(jax.random.key(1), shape, jnp.float32)


def _torch() -> Any:
    """PyTorch, if it is installed and computes on the same device as JAX."""
    if not on_cpu() or importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch
