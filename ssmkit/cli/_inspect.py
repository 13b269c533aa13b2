"""`ssmkit inspect`."""

import collections
import dataclasses
import math
from typing import Annotated, Any

import typer

from ._console import aligned, print_json
from ._options import JSONOption


def inspect(
    source: Annotated[str, typer.Argument(metavar="DIR|FILE|ID", help="A checkpoint, as --model of `generate`.")],
    as_json: JSONOption = False,
) -> None:
    """Show what a checkpoint holds.

    Its weights are not read.
    """
    report = _describe(source)
    if as_json:
        print_json(report)
        return
    header = {name: str(report[name]) for name in ("architecture", "format")}
    header["parameters"] = f"{report['parameters']:,}"
    for dtype, size in report["bytes"].items():
        header[f"{dtype} bytes"] = f"{size:,}"
    header["cache bytes per sequence"] = f"{report['cache_bytes_per_sequence']:,}"
    print(aligned(header))
    print("\nconfiguration")
    print(aligned({f"  {name}": str(value) for name, value in report["config"].items()}))
    print("\ntensors")
    rows = [
        (entry["name"], entry["dtype"], _shape(entry["shape"]), f"{entry['bytes']:,}") for entry in report["tensors"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, dtype, shape, size in rows:
        print(f"  {name:{widths[0]}}  {dtype:{widths[1]}}  {shape:{widths[2]}}  {size:>{widths[3]}} bytes")


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _describe(source: str) -> dict[str, Any]:
    """Everything that `inspect` prints.

    **Raises:** `CheckpointError`, as `ssmkit.checkpoint.describe`.
    """
    import jax.numpy as jnp

    from ..checkpoint import describe
    from ..checkpoint._skeleton import cache_bytes, stored_shapes

    checkpoint = describe(source)
    parts = checkpoint.architecture, checkpoint.dialect, checkpoint.config, jnp.float32
    sizes: collections.Counter[str] = collections.Counter()
    for tensor in checkpoint.tensors.values():
        sizes[tensor.dtype.name] += tensor.nbytes
    return {
        "architecture": checkpoint.architecture.name,
        "format": checkpoint.dialect.name,
        "parameters": sum(map(math.prod, stored_shapes(*parts).values())),
        "bytes": dict(sizes),
        "cache_bytes_per_sequence": cache_bytes(*parts),
        "config": dataclasses.asdict(checkpoint.config),
        "tensors": [
            {"name": name, "dtype": tensor.dtype.name, "shape": list(tensor.shape), "bytes": tensor.nbytes}
            for name, tensor in checkpoint.tensors.items()
        ],
    }
