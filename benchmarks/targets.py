"""What the compilers of TPU and GPU make of ssmkit's programs, without a device.

Times are lower bounds, and no measurements: cycles of the final schedule of a TPU, without waits for memory and without
the start of an operation. They are held against the least time by the device's published figures: that of reading
weights and states for a step, that of the products with weight matrices for a prompt.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ssmkit.compilation import Compilation, abstract_model, compile_for
from ssmkit.compilation._targets import read_target

from ._environment import environment
from ._geometry import GEOMETRIES


TARGETS = ("v5e", "v6e", "h100")


class Case(NamedTuple):
    """A program of a geometry. Of a deep model, few layers are compiled: the others are like them."""

    geometry: str
    layers: int
    program: str
    batch: int
    length: int
    storage: str = "bfloat16"


CASES = (
    Case("130m", 2, "step", 1, 512),
    Case("2.7b", 2, "step", 1, 512),
    Case("2.7b", 2, "step", 8, 512),
    Case("2.7b", 2, "step", 1, 512, "int8"),
    Case("2.7b", 1, "prefill", 1, 512),
    Case("2.7b", 1, "prefill", 1, 2048),
    Case("130m", 2, "generate", 1, 512),
    Case("130m", 2, "generate", 8, 512),
    Case("130m", 2, "train", 8, 512, "float32"),
)


def measure(targets: Iterable[str] = TARGETS, cases: Iterable[Case] = CASES) -> dict[str, Any]:
    """Compile every case for every target, but for training steps for a TPU, which take many minutes.

    **Returns:** the content of a result file.
    """
    results, versions = [], {}
    for target in targets:
        for case in cases:
            if case.program == "train" and read_target(target).platform == "tpu":
                continue
            print(f"{target}: {' '.join(map(str, case))}", file=sys.stderr, flush=True)
            found = _compiled(case, target)
            versions |= found.versions
            results.append({"case": case._asdict(), **found.to_dict()})
    return {"environment": environment() | versions, "results": results}


def _compiled(case: Case, target: str) -> Compilation:
    dtype, kind = ("bfloat16", case.storage) if case.storage == "int8" else (case.storage, None)
    model = abstract_model(GEOMETRIES[case.geometry].config, dtype, quantize=kind, layers=case.layers)
    return compile_for(model, target, case.program, batch=case.batch, length=case.length, max_new_tokens=64)


def table(results: list[Mapping[str, Any]]) -> str:
    """The results in Markdown, a row for each program and target."""
    head = (
        "program",
        "target",
        "compiled in",
        "temporaries",
        "in place",
        "leaves the device",
        "loops",
        "work",
        "bound",
    )
    lines = ["| " + " | ".join(head) + " |", "|---|---|--:|--:|--:|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(_cells(row)) + " |" for row in results)])


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    case, memory = row["case"], row["memory"]
    tokens = "" if case["program"] == "step" else f", {case['length']} tokens"
    model = f"{case['geometry']}, {case['layers']} layers, {case['storage']}"
    yield f"{model}: {case['program']}, batch {case['batch']}{tokens}"
    yield row["target"].partition(":")[0]
    yield f"{row['trace_seconds'] + row['compile_seconds']:.0f} s"
    yield f"{memory['temporaries'] / 1e6:.1f} MB"
    yield f"{row['state_aliased'] / row['state_bytes']:.0%}"
    yield ", ".join(row["host_transfers"]) or "nothing"
    trips = [part["trips"] for part in row["parts"][1:]]
    yield ", ".join("decided as it runs" if count is None else str(count) for count in trips) or "none"
    yield from _work(row)


def _work(row: Mapping[str, Any]) -> Iterator[str]:
    """The work of one token in the decode loop, or of the whole program; and its least time by published figures."""
    decoding = row["program"] == "generate"
    part = row["parts"][-1] if decoding else row["parts"][0]
    if part["kernels"] is not None:
        yield f"{part['kernels']} kernels, {len(part['copies'])} copies, {part['launches']} launches"
    else:
        yield f"{part['operations']} operations, {part['seconds'] * 1e6:,.0f} us" if part["seconds"] else "?"
    bound = row["token"] or row["prompt"]
    if bound is None:
        yield ""
        return
    kind = "memory" if row["token"] is not None else "products"
    seconds = bound[kind]
    share = f", {part['seconds'] / seconds:.2f} of it" if part["seconds"] else ""
    yield f"{seconds * 1e6:,.0f} us by {kind}{share}"
