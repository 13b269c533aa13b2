"""What a compilation tells: a record of plain values."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ._collectives import Collective
from ._costs import Bound
from ._hlo import Copy


class Memory(NamedTuple):
    """The bytes of one device that a program takes."""

    arguments: int
    results: int
    aliased: int
    """The bytes of results that take the memory of arguments."""
    temporaries: int
    code: int
    device: int
    """The bytes that the device has."""

    @property
    def total(self) -> int:
        """The bytes that the program takes in all."""
        return self.arguments + self.results - self.aliased + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        """Whether the device has so many bytes."""
        return self.total <= self.device


class Operation(NamedTuple):
    """One operation of a part."""

    name: str
    cycles: int
    source: str
    """The path of JAX's primitives that it came from, as the program names them."""


class PartReport(NamedTuple):
    """The program outside its loops, or one trip of a loop."""

    name: str
    """`program`; or `loop` with the positions of the loop and of the loops around it, such as `loop 2.1`."""
    trips: int | None
    """The number of trips; `None` if it is decided as the program runs."""
    operations: int
    """The number of operations that the device runs one after the other."""
    copies: tuple[Copy, ...]
    """The copies from the device's main memory to itself."""
    collectives: dict[str, Collective]
    cycles: int | None
    """The cycles of a TPU's final schedule, a lower bound of its time and never a measurement; else `None`."""
    unknown_loops: int
    """The number of loops inside operations that are counted once, because the schedule does not tell their trips."""
    costliest: tuple[Operation, ...]
    """The ten operations with the most cycles; none for a GPU."""
    kernels: int | None
    """The number of kernels that a GPU starts; else `None`."""
    launches: int | None
    """The number of calls of the host for these kernels and copies: a CUDA graph is one call; else `None`."""


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What `compile_for` found."""

    program: str
    target: str
    mesh: dict[str, int]
    devices: int
    batch: int
    length: int
    max_new_tokens: int | None
    layers: int | None
    """The number of blocks; `None` for a model without blocks."""
    parameters: int
    weight_bytes: int
    state_bytes: int
    """The bytes on one device, without padding, of what the program consumes and returns: the caches of all rows, or
    in training the weights and the optimiser's state."""
    state_aliased: int
    """The bytes of that which the program updates in place."""
    memory: Memory
    host_transfers: tuple[str, ...]
    """The operations of the program that exchange data with the host."""
    custom_calls: dict[str, int]
    """The number of calls outside HLO, by name."""
    parts: tuple[PartReport, ...]
    """The program, then its loops in the order in which they run, a loop before those inside it."""
    token: Bound | None
    """The least time of one token of every row; `None` in training."""
    prompt: Bound | None
    """The least time of the prompts; `None` in a step and in training."""
    clock: float | None
    """The cycles per second of the device, if they are known."""
    trace_seconds: float
    compile_seconds: float
    versions: dict[str, str]
    text: str = dataclasses.field(repr=False)
    """The optimised HLO."""

    def seconds(self, part: PartReport) -> float | None:
        """The least time of a part by its schedule, with the loops inside it whose trips are known.

        **Returns:** seconds; `None` without cycles, or without the device's clock.
        """
        if part.cycles is None or self.clock is None:
            return None
        return self._cycles(part) / self.clock

    def _cycles(self, part: PartReport) -> int:
        prefix = "loop " if part.name == "program" else f"{part.name}."
        inside = (
            other
            for other in self.parts
            if other.trips is not None and other.name.startswith(prefix) and "." not in other.name[len(prefix) :]
        )
        return (part.cycles or 0) + sum((other.trips or 0) * self._cycles(other) for other in inside)

    @property
    def collectives(self) -> dict[str, Collective]:
        """The communication of the whole program, by kind. A loop whose trips are decided as it runs counts once."""
        trips = {part.name: part.trips or 1 for part in self.parts}
        found: dict[str, Collective] = {}
        for part in self.parts:
            times = math.prod(trips[name] for name in _loops_around(part.name))
            for kind, own in part.collectives.items():
                found[kind] = found.get(kind, Collective(0, 0)) + own.times(times)
        return dict(sorted(found.items()))

    def to_dict(self) -> dict[str, Any]:
        """The record as values that JSON can express, without the text of the program."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "text"}
        plain: dict[str, Any] = _plain(record)
        plain["memory"] |= {"total": self.memory.total, "fits": self.memory.fits}
        plain["collectives"] = _plain(self.collectives)
        for part, shown in zip(self.parts, plain["parts"], strict=True):
            shown["seconds"] = self.seconds(part)
        return plain


def _loops_around(part: str) -> Iterator[str]:
    """The name of a part, and those of the loops around it."""
    name, numbers = part.split(" ")[0], part.partition(" ")[2].split(".")
    yield from (f"{name} {'.'.join(numbers[: i + 1])}".strip() for i in range(len(numbers)))


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value
