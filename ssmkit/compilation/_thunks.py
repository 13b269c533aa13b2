"""Reading of the sequence in which XLA starts kernels on a GPU: what the host does, and what one graph does alone."""

import re
from collections.abc import Iterator
from typing import NamedTuple


class Launches(NamedTuple):
    """What is started for the program outside loops, or for one trip of a loop."""

    kernels: int
    copies: int
    graphs: int
    """The number of CUDA graphs. Each is one call of the host, whatever it holds."""
    alone: int
    """The number of kernels and copies outside graphs, each of which is one call of the host."""


class _Thunk(NamedTuple):
    kind: str
    graph: bool
    body: list["_Thunk"]


_THUNK = re.compile(r"^(\s*)\d+: (k\w+)")


def launches(text: str) -> Iterator[Launches]:
    """The launches of the program, and of its loops, in the order in which they run, a loop before those inside it.

    **Arguments:**

    - `text`: the sequence that XLA writes with `--xla_dump_to`, after its passes.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    thunks, _ = _sequence(lines, 0, -1, graph=False)
    yield from _launches(thunks)


def _launches(thunks: list[_Thunk]) -> Iterator[Launches]:
    count = lambda *kinds, graph=None: sum(thunk.kind in kinds and graph in (None, thunk.graph) for thunk in thunks)
    work = "kCustomKernel", "kKernel", "kGemm", "kCopy", "kMemset32BitValue", "kMemzero"
    yield Launches(
        kernels=count("kCustomKernel", "kKernel", "kGemm"),
        copies=count("kCopy"),
        graphs=count("kCommandBuffer"),
        alone=count(*work, graph=False),
    )
    for thunk in thunks:
        if thunk.kind == "kWhile":
            yield from _launches(thunk.body)


def _sequence(lines: list[str], position: int, outside: int, *, graph: bool) -> tuple[list[_Thunk], int]:
    """The thunks from a position on that are indented by more than `outside`, and the position after them.

    The thunks of a graph are listed beside it. A loop is followed by its condition and its body.
    """
    thunks: list[_Thunk] = []
    while position < len(lines):
        found = _THUNK.match(lines[position])
        if found is None or len(found[1]) <= outside:
            break
        indent, kind, position = len(found[1]), found[2], position + 1
        body: list[_Thunk] = []
        if kind == "kWhile":
            position += lines[position].strip() == "condition:"
            _, position = _sequence(lines, position, indent, graph=graph)
            position += lines[position].strip() == "body:"
            body, position = _sequence(lines, position, indent, graph=graph)
        thunks.append(_Thunk(kind, graph, body))
        if kind == "kCommandBuffer":
            inner, position = _sequence(lines, position, indent, graph=True)
            thunks += inner
    return thunks, position
