"""Reading of optimised HLO: what a compiled program runs, in what order, and what it moves."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


_BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b(pred|bf16|f8e4m3fn|f8e5m2|[sufc]\d+)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[a-z][\w\-]*)\(")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{\s*$")
_ALIAS = re.compile(r"\{[\d, ]*\}: \((\d+), \{[\d, ]*\}, (?:may|must)-alias\)")

FREE = frozenset(
    "after-all async-done async-start async-update bitcast constant copy-done get-tuple-element opt-barrier parameter "
    "slice-done tuple".split()
)
"""Operations that compute nothing, or only end what another operation began."""
LEAVING = frozenset("infeed outfeed send recv host-execute".split())
"""Operations that exchange data with the host."""
_REMARKS = re.compile(r", (?:metadata|backend_config|frontend_attributes)=.*|\bROOT ")
_HOST_MEMORY = re.compile(r"\bS\(5\)")


class Instruction(NamedTuple):
    """One instruction of a computation."""

    name: str
    shape: str
    opcode: str
    line: str

    @property
    def kind(self) -> str:
        """The operation, for which an asynchronous start stands too."""
        return self.opcode.removesuffix("-start")

    @property
    def source(self) -> str:
        """The path of JAX's primitives that it came from; empty if the program does not name it."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return "" if found is None else found[1]

    @property
    def nbytes(self) -> int:
        """The bytes of its result; those of its first part if it starts an asynchronous copy."""
        return nbytes(self.shape, first=self.opcode == "copy-start")


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled module."""

    text: str
    computations: Mapping[str, Sequence[Instruction]]
    entry: str

    @functools.cached_property
    def shapes(self) -> Mapping[str, str]:
        """The shape of every instruction, by its name."""
        every = self.computations.values()
        return {instruction.name: instruction.shape for instructions in every for instruction in instructions}

    def called(self, line: str, role: str) -> str:
        """The name of a computation that an instruction calls in a role, such as `body`."""
        found = re.search(rf"\b{role}=%?([\w.\-]+)", line)
        assert found is not None
        return found[1]


def read_module(text: str) -> Module:
    """Read the text of a compiled module, as `jax.stages.Compiled.as_text` gives it."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            head = _HEAD.match(line)
            if head is not None:
                current = computations.setdefault(head["name"], [])
                entry = head["name"] if head["entry"] else entry
            elif line.startswith("}"):
                current = None
        elif current is not None:
            found = _INSTRUCTION.match(line)
            if found is not None:
                current.append(Instruction(found["name"], found["shape"], found["opcode"], line))
    return Module(text, computations, entry)


def nbytes(shape: str, *, first: bool = False) -> int:
    """The bytes of an array, or of all arrays of a tuple, without padding.

    **Arguments:**

    - `shape`: the shape as HLO writes it, such as `f32[2,3]{1,0}`.
    - `first`: whether only the first array of a tuple counts.
    """
    sizes = [_size(*found.groups()) for found in _SHAPE.finditer(shape)]
    return sum(sizes[:1] if first else sizes)


def _size(dtype: str, dimensions: str, layout: str | None) -> int:
    size = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype))
    for dimension in filter(None, dimensions.split(",")):
        size *= int(dimension)
    return size // 8


def aliased(module: Module) -> list[int]:
    """The parameters whose memory the results of a program take, in order."""
    return sorted(int(found[1]) for found in _ALIAS.finditer(module.text.partition("\n")[0]))


class Copy(NamedTuple):
    """A copy of an array that stays in the same memory."""

    shape: str
    nbytes: int


def copies(instructions: Sequence[Instruction]) -> list[Copy]:
    """The copies from the device's main memory to itself. A copy into or out of a fast memory is none."""
    shapes = {instruction.name: instruction.shape for instruction in instructions}
    found = []
    for instruction in instructions:
        if instruction.kind != "copy":
            continue
        operand = re.search(rf" {instruction.opcode}\(%?([\w.\-]+)", instruction.line)
        made = _SHAPE.search(instruction.shape)
        source = _SHAPE.search(shapes.get(operand[1], "") if operand else "")
        if made is not None and not any("S(" in (shape[3] or "") for shape in (made, source) if shape is not None):
            found.append(Copy(f"{made[1]}[{made[2]}]", instruction.nbytes))
    return found


def host_transfers(module: Module) -> list[str]:
    """The operations that exchange data with the host, in all computations."""
    return sorted(
        instruction.kind
        for instructions in module.computations.values()
        for instruction in instructions
        if instruction.kind in LEAVING or (instruction.kind == "copy" and _HOST_MEMORY.search(instruction.line))
    )


def custom_calls(module: Module) -> dict[str, int]:
    """The number of calls of each function outside HLO, by its name."""
    return dict(sorted(collections.Counter(re.findall(r'custom_call_target="([^"]*)"', module.text)).items()))


def form(module: Module, instruction: Instruction) -> str:
    """What an instruction computes, without the names in it: the compiler schedules instructions of one form once."""
    called = re.search(r"\bcalls=%?([\w.\-]+)", instruction.line)
    lines = [] if called is None else [other.line for other in module.computations[called[1]]]
    numbers: dict[str, str] = {}
    number = lambda name: numbers.setdefault(name[0], f"%{len(numbers)}")
    without = lambda line: re.sub(r"%[\w.\-]+", number, _REMARKS.sub("", line))
    return "\n".join([instruction.shape, instruction.opcode, *map(without, lines or [instruction.line])])


class Part(NamedTuple):
    """The program outside loops, or one trip of a loop."""

    name: str
    """`program`, or `loop` and the positions of the loop and of the loops around it, such as `loop 2.1`."""
    trips: int | None
    """The number of trips; `None` if it is decided as the program runs."""
    instructions: Sequence[Instruction]
    condition: Sequence[Instruction] = ()
    """What decides about another trip."""


def parts(module: Module) -> Iterator[Part]:
    """The program and its loops, in the order in which they run, a loop before those inside it."""
    yield from _parts(module, module.entry, "program", 1, ())


def _parts(
    module: Module, computation: str, name: str, trips: int | None, condition: Sequence[Instruction]
) -> Iterator[Part]:
    own = [instruction for instruction in _flat(module, computation) if instruction.kind not in FREE]
    loops = [instruction for instruction in own if instruction.kind == "while"]
    yield Part(name, trips, [instruction for instruction in own if instruction.kind != "while"], condition)
    prefix = "loop " if name == "program" else f"{name}."
    for i, loop in enumerate(loops, 1):
        body, test = (module.called(loop.line, role) for role in ("body", "condition"))
        told = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.line)
        trips = int(told[1]) if told else _trips(module.computations[test])
        yield from _parts(module, body, f"{prefix}{i}", trips, list(_flat(module, test)))


def _flat(module: Module, computation: str) -> Iterator[Instruction]:
    """The instructions of a computation. A computation that it calls stands in the place of the call."""
    for instruction in module.computations[computation]:
        if instruction.kind == "call":
            yield from _flat(module, module.called(instruction.line, "to_apply"))
        else:
            yield instruction


def _trips(condition: Sequence[Instruction]) -> int | None:
    """The trips of a loop that counts from zero to a constant."""
    constants = {i.name: found[1] for i in condition if (found := re.search(r" constant\((\d+)\)", i.line))}
    last = condition[-1].line
    compared = re.search(r"compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", last)
    return int(constants[compared[1]]) if compared and compared[1] in constants else None
