"""`ssmkit compile`."""

import enum
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._default_model import default_model_path
from ._console import aligned, print_json
from ._options import DType, JSONOption, MeshOption, ModelOption, QuantizeOption, RevisionOption, read_mesh


if TYPE_CHECKING:
    from ..compilation import Compilation
    from ..compilation._collectives import Collective
    from ..compilation._report import PartReport


class Program(enum.StrEnum):
    """The programs that can be compiled."""

    step = enum.auto()
    prefill = enum.auto()
    generate = enum.auto()
    train = enum.auto()


def compile_(
    target: Annotated[
        str,
        typer.Option(
            metavar="DEVICE[:TOPOLOGY]", help="v4, v5e, v5p, v6e, tpu7x, h100 or h200; v6e:2x2 is four devices."
        ),
    ],
    program: Annotated[Program, typer.Option(help="What to compile.")] = Program.generate,
    model: ModelOption = None,
    revision: RevisionOption = None,
    geometry: Annotated[
        str | None,
        typer.Option("--geometry", "-g", help="A Mamba-2 of published sizes, in place of a model: 130m .. 7b."),
    ] = None,
    scan_layers: Annotated[
        bool, typer.Option("--scan-layers", help="Stack equal layers, so that one loop runs them.")
    ] = False,
    layers: Annotated[int | None, typer.Option(min=1, help="Fewer layers than the model has.")] = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Sequences.")] = 1,
    length: Annotated[int, typer.Option("--length", "-l", min=1, help="Tokens of a prompt, or to train on.")] = 512,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 128,
    dtype: Annotated[DType, typer.Option(help="The dtype of the weights.")] = DType.bfloat16,
    quantize: QuantizeOption = None,
    mesh: MeshOption = None,
    fully_sharded: Annotated[
        bool, typer.Option("--fully-sharded", help="Spread weights and optimiser over data too.")
    ] = False,
    top: Annotated[bool, typer.Option("--top", help="List the costliest operations of each part, for a TPU.")] = False,
    as_json: JSONOption = False,
) -> None:
    """Compile a model for a TPU or GPU that is not there.

    The devices' own compilers run on any machine: pip install 'ssmkit[aot-tpu]' or 'ssmkit[aot-cuda]'. Nothing is
    computed, and no weight is read. Times are lower bounds, by the compiler's schedule or the device's published
    figures, and no measurements.
    """
    if model is not None and geometry is not None:
        raise ValueError("--model and --geometry exclude each other: name one of them")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no device is needed, and none is waited for
    from ..compilation import abstract_model, compile_for

    source = _published(geometry) if geometry is not None else model or str(default_model_path())
    kind = None if quantize is None else quantize.value
    subject = abstract_model(
        source, dtype.value, quantize=kind, revision=revision, layers=layers, scan_layers=scan_layers
    )
    try:
        found = compile_for(
            subject,
            target,
            program.value,
            batch=batch,
            length=length,
            max_new_tokens=max_new_tokens,
            mesh=None if mesh is None else read_mesh(mesh),
            fully_sharded=fully_sharded,
        )
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from None
    if as_json:
        print_json(found.to_dict())
        return
    print(aligned(_summary(found)))
    print()
    print("\n".join(_table(found)))
    if top:
        print("\n".join(_costliest(found)))


def _published(geometry: str) -> Any:
    from ..benchmarks._geometry import GEOMETRIES

    if geometry not in GEOMETRIES:
        raise ValueError(f"--geometry must be one of {', '.join(GEOMETRIES)}, got {geometry!r}")
    return GEOMETRIES[geometry].config


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _summary(found: "Compilation") -> dict[str, str]:
    """The lines of a report, by their names."""
    memory = found.memory
    new = "" if found.max_new_tokens is None else f", {found.max_new_tokens} new tokens"
    lines = {
        "program": f"{found.program}, batch {found.batch}, length {found.length}{new}",
        "model": f"{found.parameters:,} parameters, {_bytes(found.weight_bytes)}"
        + ("" if found.layers is None else f", {found.layers} blocks"),
        "target": f"{found.target}; {found.devices} of its devices"
        + (f" as {', '.join(f'{name}={size}' for name, size in found.mesh.items())}" if found.mesh else ""),
        "compiled": f"in {found.compile_seconds:.1f} s, after {found.trace_seconds:.1f} s of tracing, by "
        + ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        "memory per device": f"{_bytes(memory.total)} of {_bytes(memory.device)}"
        + ("" if memory.fits else ", which does not fit")
        + f": arguments {_bytes(memory.arguments)}, new results {_bytes(memory.results - memory.aliased)}, temporaries "
        f"{_bytes(memory.temporaries)}, code {_bytes(memory.code)}",
        "communication": communication(found.collectives),
        "updated in place": f"{_bytes(found.state_aliased)} of {_bytes(found.state_bytes)} of "
        + ("weights and optimiser" if found.program == "train" else "caches"),
        "transfers to the host": ", ".join(found.host_transfers) or "none",
        "calls outside HLO": ", ".join(f"{name} ({n})" for name, n in found.custom_calls.items()) or "none",
    }
    for name, bound in (("bound per token", found.token), ("bound of the prompts", found.prompt)):
        if bound is not None:
            lines[name] = f"{_time(bound.memory)} by memory, {_time(bound.products)} by products"
    return lines


def communication(collectives: Mapping[str, "Collective"]) -> str:
    """What devices exchange: every kind, how often, and the bytes on one device."""
    return ", ".join(f"{kind} {each.number} ({_bytes(each.nbytes)})" for kind, each in collectives.items()) or "none"


def _table(found: "Compilation") -> list[str]:
    """The lines of the table of parts: the program, and one trip of each of its loops."""
    is_gpu = found.parts[0].kernels is not None
    head = ["part", "trips", "operations", "copies", "collectives"]
    head += ["kernels", "launches"] if is_gpu else ["cycles", "at least"]
    rows = [head, *([part.name, *_cells(found, part, is_gpu)] for part in found.parts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:>{w}}" if i else f"{cell:{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    unknown = sum(part.unknown_loops for part in found.parts)
    if unknown:
        lines.append(f"{unknown} loops inside operations are counted once: the schedule does not tell their trips.")
    return lines


def _costliest(found: "Compilation") -> Iterator[str]:
    """The lines of the costliest operations, by part."""
    for part in found.parts:
        if part.costliest:
            yield f"\n{part.name}"
        for operation in part.costliest:
            yield f"  {operation.cycles:>9,}  {operation.name}  {operation.source}"


def _cells(found: "Compilation", part: "PartReport", is_gpu: bool) -> list[str]:
    copied = sum(copy.nbytes for copy in part.copies)
    cells = [
        "?" if part.trips is None else str(part.trips),
        str(part.operations),
        f"{len(part.copies)} ({_bytes(copied)})" if part.copies else "0",
        communication(part.collectives),
    ]
    if is_gpu:
        return [*cells, str(part.kernels), str(part.launches)]
    seconds = found.seconds(part)
    return [*cells, "?" if part.cycles is None else f"{part.cycles:,}", "?" if seconds is None else _time(seconds)]
