"""`ssmkit inspect`."""

import collections
import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from .._default_model import default_model_path
from ._console import aligned, print_json
from ._options import JSONOption, RevisionOption
from ._streams import tell


def inspect(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR|FILE|ID]",
            help="A checkpoint or an exported model, as --model of `generate`.",
            show_default="the embedded model",
        ),
    ] = None,
    revision: RevisionOption = None,
    target: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Say how sizes fit v4, v5e, v5p, v6e, tpu7x, h100 or h200.")
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Show the contents of a checkpoint or an exported model.

    The weights are not read.
    """
    from ..export import is_exported

    if source is None:
        source = str(default_model_path())
    exported = revision is None and is_exported(source)
    if exported and target is not None:
        raise ValueError(f"`{source}` is an exported model: --target needs the checkpoint that it was made of")
    report = _describe_exported(source) if exported else _describe(source, revision)
    if target is not None:
        report["target"] = _fit(source, revision, target)
    if as_json:
        print_json(report)
        return
    header = {name: str(report[name]) for name in ("architecture", "format") if name in report}
    if "programs" in report:
        header["platforms"] = ", ".join(report["programs"])
        header["program bytes"] = f"{sum(sum(programs.values()) for programs in report['programs'].values()):,}"
        header["made with"] = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    header["parameters"] = f"{report['parameters']:,}"
    for dtype, size in report["bytes"].items():
        header[f"{dtype} bytes"] = f"{size:,}"
    header["cache bytes per sequence"] = f"{report['cache_bytes_per_sequence']:,}"
    if report.get("cache_bytes_per_token"):
        header["cache bytes per token"] = f"{report['cache_bytes_per_token']:,}"
    for name, size in report.get("target", {}).items():
        if name.endswith("bytes"):
            header[f"{name.replace('_', ' ')} on {target}"] = f"{size:,}"
    print(aligned(header))
    for problem in report.get("target", {}).get("problems", []):
        tell(f"warning: {problem}")
    print("\nconfiguration")
    print(aligned({f"  {name}": str(value) for name, value in report["config"].items()}))
    print("\ntensors")
    rows = [
        (entry["name"], entry["dtype"], _shape(entry["shape"]), f"{entry['bytes']:,}") for entry in report["tensors"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, dtype, shape, size in rows:
        print(f"  {name:{widths[0]}}  {dtype:{widths[1]}}  {shape:{widths[2]}}  {size:>{widths[3]}} bytes")


def _fit(source: str, revision: str | None, target: str) -> dict[str, Any]:
    """How the sizes of a checkpoint fit a device, as `inspect` shows it."""
    from ..compilation import abstract_model
    from ..compilation._padding import fit
    from ..compilation._targets import read_target

    device = read_target(target).device
    found = fit(abstract_model(source, revision=revision), device)
    return {
        "device": device.name,
        "weight_bytes": found.weights_padded,
        "cache_bytes": found.cache_padded,
        "problems": found.problems,
    }


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _describe(source: str, revision: str | None) -> dict[str, Any]:
    """Everything that `inspect` prints.

    **Raises:** `CheckpointError`, as `ssmkit.checkpoint.describe`.
    """
    import jax.numpy as jnp

    from ..checkpoint import describe
    from ..checkpoint._skeleton import cache_bytes, parameter_count

    checkpoint = describe(source, revision=revision)
    parts = checkpoint.architecture, checkpoint.dialect, checkpoint.config, jnp.float32
    fixed, per_token = cache_bytes(*parts)
    sizes: collections.Counter[str] = collections.Counter()
    for tensor in checkpoint.tensors.values():
        sizes[tensor.dtype.name] += tensor.nbytes
    return {
        "architecture": checkpoint.architecture.name,
        "format": checkpoint.dialect.name,
        "parameters": parameter_count(*parts),
        "bytes": dict(sizes),
        "cache_bytes_per_sequence": fixed,
        "cache_bytes_per_token": per_token,
        "config": dataclasses.asdict(checkpoint.config),
        "tensors": [
            {"name": name, "dtype": tensor.dtype.name, "shape": list(tensor.shape), "bytes": tensor.nbytes}
            for name, tensor in checkpoint.tensors.items()
        ],
    }


def _describe_exported(source: str) -> dict[str, Any]:
    """Everything that `inspect` prints for an artefact: its manifest, in the form of a checkpoint's description.

    **Raises:** `CheckpointError` when the manifest cannot be read.
    """
    from ..export._manifest import read_manifest

    folder = Path(source)
    manifest = read_manifest(folder)
    size = lambda path: (folder / path).stat().st_size if (folder / path).is_file() else 0
    nbytes = lambda spec: spec.size * spec.numpy_dtype.itemsize
    sizes: collections.Counter[str] = collections.Counter()
    for spec in manifest.weights.values():
        sizes[spec.dtype] += nbytes(spec)
    return {
        "format": "exported model",
        "versions": dict(manifest.versions),
        "programs": {
            platform: {name: size(file.path) for name, file in programs.items()}
            for platform, programs in manifest.programs.items()
        },
        "parameters": sum(spec.size for spec in manifest.weights.values()),
        "bytes": dict(sizes),
        "cache_bytes_per_sequence": sum(map(nbytes, manifest.cache.values())),
        "config": {"vocab_size": manifest.vocab_size, "lengths": list(manifest.lengths), "logits": manifest.logits},
        "tensors": [
            {"name": name, "dtype": spec.dtype, "shape": list(spec.shape), "bytes": nbytes(spec)}
            for name, spec in manifest.weights.items()
        ],
    }
