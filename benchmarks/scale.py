"""What large models and long prompts need on many devices: memory and communication, by the devices' own compilers.

No device is needed, and nothing is measured. Equal layers are one loop (`scan_layers`), so that every program is
compiled as a whole.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ssmkit.cli._compile import communication
from ssmkit.compilation import Compilation, abstract_model, compile_for
from ssmkit.compilation._collectives import Collective

from ._environment import environment
from ._geometry import GEOMETRIES


NEW_TOKENS = 128
"""The number of tokens that a program of generation has room for; their ids take next to no memory."""


class Case(NamedTuple):
    """A program of a geometry, over a mesh of a target's devices."""

    geometry: str
    program: str
    target: str
    mesh: dict[str, int]
    batch: int
    length: int
    storage: str = "bfloat16"

    @property
    def fully_sharded(self) -> bool:
        """Weights and the optimiser's state are spread over `data` in training."""
        return self.program == "train"

    @property
    def command(self) -> str:
        """The command that compiles the case."""
        mesh = ",".join(f"{axis}={size}" for axis, size in self.mesh.items())
        words = ["ssmkit compile --target", self.target, "-g", self.geometry, "--scan-layers --program", self.program]
        words += ["-b", str(self.batch), "-l", str(self.length), "--dtype", self.storage]
        words += (["--mesh", mesh] if mesh else []) + (["--fully-sharded"] if self.fully_sharded else [])
        return " ".join(words)


def _train(geometry: str, target: str, devices: int, length: int = 2048) -> Case:
    """A training step in which every device has one sequence."""
    return Case(geometry, "train", target, {"data": devices}, devices, length, "float32")


def _serve(geometry: str, target: str, mesh: dict[str, int], batch: int = 8) -> Case:
    """Prompts of 2,048 tokens and the decode loop."""
    return Case(geometry, "generate", target, mesh, batch, 2048)


CASES = (
    *(_train("2.7b", "h100:8", 8, length) for length in (1024, 2048, 4096)),
    _train("7b", "h100:8", 8),
    _serve("2.7b", "h100", {}),
    _serve("7b", "h100", {}),
    _serve("7b", "h100:8", {"model": 8}),
    _serve("2.7b", "v5e", {}),
    _serve("2.7b", "v5e:2x2", {"model": 4}),
    _serve("7b", "v5e", {}),
    _serve("7b", "v5e:2x2", {"model": 4}),
    _serve("2.7b", "v6e", {}),
    _serve("7b", "v6e", {}),
    _serve("7b", "v6e:2x4", {"model": 8}),
    *(Case("130m", "prefill", "v6e:2x4", {"sequence": 8}, 1, length) for length in (1 << 17, 1 << 20)),
    _train("2.7b", "v6e:4x4", 16),
    _train("2.7b", "v5e:4x4", 16),
    _train("7b", "v6e:4x4", 16),
    _train("7b", "v5e:4x4", 16),
)


TABLES = (("train",), ("generate",), ("prefill",))
"""The programs of each table."""


def measure(only: Iterable[str] | None, before: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Compile every case.

    **Arguments:**

    - `only`: words, one of which a case's command must hold; `None` takes every case.
    - `before`: the content of a result file, whose other cases are kept.

    **Returns:** the content of a result file after each case, because all of them take an hour.
    """
    results = {row["command"]: row for row in before["results"]}
    versions = dict(before.get("environment", {}))
    for case in CASES:
        if only is not None and not any(words in case.command for words in only):
            continue
        print(case.command, file=sys.stderr, flush=True)
        found = _compiled(case)
        results[case.command] = {"command": case.command, "case": case._asdict(), **found}
        versions |= environment() | found.get("versions", {})
        known = [results[one.command] for one in CASES if one.command in results]
        yield {"environment": versions, "results": known}


def _compiled(case: Case) -> dict[str, Any]:
    """What the compiler tells. A program that does not fit into memory is a result too."""
    model = abstract_model(GEOMETRIES[case.geometry].config, case.storage, scan_layers=True)
    try:
        found = compile_for(
            model,
            case.target,
            case.program,
            batch=case.batch,
            length=case.length,
            max_new_tokens=NEW_TOKENS,
            mesh=case.mesh or None,
            fully_sharded=case.fully_sharded,
        )
    except MemoryError as error:
        return {"refused": str(error)}
    return _kept(found)


def _kept(found: Compilation) -> dict[str, Any]:
    """What is kept of a record: that of the whole program, and the communication of each part."""
    record = found.to_dict()
    names = "parameters", "memory", "collectives", "state_bytes", "state_aliased", "compile_seconds", "versions"
    parts = [{"name": part.name, "trips": part.trips, "collectives": part.collectives} for part in found.parts]
    return {name: record[name] for name in names} | {
        "parts": [part | {"collectives": {k: v._asdict() for k, v in part["collectives"].items()}} for part in parts]
    }


def needs() -> str:
    """What the numbers of a model alone need, in Markdown, reckoned from its geometry."""
    head = (
        "model",
        "parameters",
        "weights in bfloat16",
        "weights and optimiser",
        "cache of a sequence",
        "state of a layer",
    )
    lines = [f"| {' | '.join(head)} |", "|---|--:|--:|--:|--:|--:|"]
    for name in ("130m", "2.7b", "7b"):
        geometry = GEOMETRIES[name]
        heads, size, dim = (geometry.config[key] for key in ("num_heads", "state_size", "head_dim"))
        state = 4 * heads * size * dim
        sizes = 2 * geometry.parameters / 1e9, 12 * geometry.parameters / 1e9
        cells = [name, f"{geometry.parameters:,}", *(f"{size:.2f} GB" for size in sizes)]
        lines.append(f"| {' | '.join(cells)} | {geometry.cache_bytes() / 1e6:.0f} MB | {state / 1e6:.1f} MB |")
    return "\n".join(lines)


def table(results: Iterable[Mapping[str, Any]], *programs: str) -> str:
    """The results of some programs in Markdown, a row for each case."""
    head = "| model | devices | mesh | tokens | memory per device | of it arguments | temporaries | communication |"
    rows = [row for row in results if row["case"]["program"] in programs]
    return "\n".join(
        [head, "|---|---|---|--:|--:|--:|--:|---|", *("| " + " | ".join(_cells(row)) + " |" for row in rows)]
    )


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    case = row["case"]
    yield f"{case['geometry']}, {case['storage']}"
    yield case["target"]
    yield ", ".join(f"{axis}={size}" for axis, size in case["mesh"].items()) or "one device"
    yield f"{case['batch']} x {case['length']:,}"
    memory = row.get("memory")
    if memory is None:
        yield from ("does not fit", "", "", "")
        return
    fits = "" if memory["fits"] else ", does not fit"
    yield f"{memory['total'] / 1e9:.2f} of {memory['device'] / 1e9:.1f} GB{fits}"
    yield f"{memory['arguments'] / 1e9:.2f} GB"
    yield f"{memory['temporaries'] / 1e9:.2f} GB"
    yield communication({kind: Collective(**each) for kind, each in row["collectives"].items()})
