"""The cycles of a TPU program, counted in the final schedule that the compiler can write beside it.

A TPU core executes one bundle of instructions per cycle. The cycles of an operation are the number of its bundles,
those of a loop times its trips. Branches that are not taken count. Waits for memory and the start of an operation do
not count. A loop whose trips the text does not give is counted once.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Cycles(NamedTuple):
    """The cycles of one operation."""

    total: int
    unknown_loops: int
    """The number of its loops that are counted once, because their trips are unknown."""

    def __add__(self, other: "Cycles") -> "Cycles":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Cycles(self.total + other.total, self.unknown_loops + other.unknown_loops)


class _Bundle(NamedTuple):
    depth: int
    begins_loop: bool
    trips: int | None
    """The number of trips of the loop that the bundle may leave; 0 if the text does not give it."""


_LINE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s*((?:[A-Z]{2} ?)*)\s*: ?(>*)\s*\{(.*)")
_TRIPS = re.compile(r"scmp\.(?:ge|lt)\.s32\.totalorder %s\w+, (\d+) /\* loop exit test \*/")
_FILE = re.compile(r"(?:\d+-)?(?P<operation>.+)-\d+-final_bundles\.txt")


def cycles_of_operations(folder: Path) -> Mapping[str, Cycles]:
    """The cycles of every operation in a folder of schedules, by the operation's name in the optimised HLO.

    **Arguments:**

    - `folder`: the folder that the compiler wrote; other files in it are left out.
    """
    found: dict[str, Cycles] = {}
    for path in folder.iterdir():
        named = _FILE.fullmatch(path.name)
        if named is None or named["operation"].endswith("-schedule-analysis"):
            continue
        cycles = cycles_of_text(path.read_text(errors="replace"))
        found[named["operation"]] = max(cycles, found.get(named["operation"], cycles))
    return found


def cycles_of_text(text: str) -> Cycles:
    """The cycles of one operation.

    **Arguments:**

    - `text`: the operation's schedule. In it, `>` before a bundle stands for every loop around it.
    """
    bundles = list(_bundles(text))
    total, position = Cycles(0, 0), 0
    while position < len(bundles):
        inside, after, _ = _level(bundles, position, 0)
        total, position = total + inside, max(after, position + 1)
    return total


def _bundles(text: str) -> Iterator[_Bundle]:
    depth = 0
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        begins_loop, marks, content = "LB" in found[1], found[2], found[3]
        if begins_loop or not content.startswith("}"):  # an empty bundle has no marks, and is where its neighbour is
            depth = len(marks)
        trips = _TRIPS.search(content)
        yield _Bundle(depth, begins_loop, int(trips[1]) if trips else 0 if "loop exit test" in content else None)


def _level(bundles: list[_Bundle], position: int, depth: int) -> tuple[Cycles, int, int | None]:
    """The cycles of one pass through the bundles at least this deep, the next position, and the trips of this level."""
    total, trips, start = Cycles(0, 0), None, position
    while position < len(bundles) and bundles[position].depth >= depth:
        bundle = bundles[position]
        if bundle.depth > depth:
            inside, position, inner = _level(bundles, position, depth + 1)
            total += Cycles(inside.total * (inner or 1), inside.unknown_loops + (not inner))
            continue
        if bundle.begins_loop and position > start and depth > 0:
            break  # the next loop of this level
        total += Cycles(1, 0)
        trips = bundle.trips if bundle.trips is not None else trips
        position += 1
    return total, position, trips
