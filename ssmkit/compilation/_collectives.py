"""The communication between devices in optimised HLO."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ._hlo import Instruction, Module, nbytes


COLLECTIVES = frozenset(
    "all-gather all-reduce all-to-all collective-broadcast collective-permute ragged-all-to-all reduce-scatter".split()
)
_CALLED = re.compile(r"\b(?:calls|called_computation)=%?([\w.\-]+)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_COUNTER = re.compile(r"\b[us]32\[\](?:\{[^}]*\})?,? ?")


class Collective(NamedTuple):
    """All communication of one kind in a part of a program."""

    number: int
    nbytes: int
    """The bytes that it takes or gives on one device, whichever are more: those of a whole array that is gathered from
    all devices, or summed and scattered over them."""

    def __add__(self, other: "Collective") -> "Collective":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Collective(self.number + other.number, self.nbytes + other.nbytes)

    def times(self, trips: int) -> "Collective":
        """That of a loop with so many trips."""
        return Collective(self.number * trips, self.nbytes * trips)


def collectives(module: Module, instructions: Sequence[Instruction]) -> dict[str, Collective]:
    """The communication between devices in a part of a program, by kind.

    What begins and ends by two instructions counts once. A TPU's compiler puts it into fusions too. It may spread one
    gathering over several fusions that compute meanwhile, which have one channel. It writes a sum that is scattered as
    a fusion of a sum and a slice.

    **Arguments:**

    - `module`: the module.
    - `instructions`: those of the part.
    """
    found: dict[str, Collective] = {}
    spread: set[tuple[str, str]] = set()
    for instruction in instructions:
        if instruction.kind in COLLECTIVES:
            _add(found, instruction.kind, _bytes(module, instruction))
        for name in _computations(module, instruction):
            for inner in module.computations[name]:
                if inner.kind not in COLLECTIVES:
                    continue
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else inner.kind
                channel = _CHANNEL.search(inner.line)
                if kind == inner.kind and channel is not None:
                    if (kind, channel[1]) in spread:
                        continue
                    spread.add((kind, channel[1]))
                _add(found, kind, _bytes(module, inner))
    return dict(sorted(found.items()))


def _add(found: dict[str, Collective], kind: str, size: int) -> None:
    found[kind] = found.get(kind, Collective(0, 0)) + Collective(1, size)


def _computations(module: Module, instruction: Instruction) -> Iterator[str]:
    """The computations that a fusion or an asynchronous start holds, and those inside them."""
    for name in _CALLED.findall(instruction.line):
        yield name
        for inner in module.computations[name]:
            yield from _computations(module, inner)


def _bytes(module: Module, instruction: Instruction) -> int:
    """The bytes of the operands or of the results, whichever are more; an asynchronous start gives both."""
    arguments = instruction.line.partition(f" {instruction.opcode}(")[2].partition(")")[0]
    taken = sum(nbytes(module.shapes.get(name, "")) for name in re.findall(r"%?([\w.\-]+)(?:,|$)", arguments))
    given = nbytes(_COUNTER.sub("", instruction.shape))
    if instruction.opcode.endswith("-start") and given > taken:
        given -= taken
    return max(taken, given)
