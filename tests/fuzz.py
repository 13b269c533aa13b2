"""A fuzzer for whatever reads files: damaged copies of a valid one, and what reading them costs.

A `Kind` says how a valid file is made, damaged and read. `fuzz` reads many damaged copies and refuses everything but
the documented errors: other exceptions, long messages, hangs, memory without bound, files opened elsewhere, processes.
"""

import collections
import contextlib
import copy
import dataclasses
import faulthandler
import json
import os
import pathlib
import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ssmkit import CheckpointError


SECONDS = 10.0  # the longest that a file may take
MESSAGE = 20_000  # the longest message, in characters
MEMORY = 300 << 20  # beyond one and a half times the file, in bytes

Damage = Callable[[bytes, random.Random], bytes]


# How files are damaged.


def flipped(content: bytes, generator: random.Random) -> bytes:
    """A few bytes are changed, removed, repeated, moved or set to extremes."""
    damaged = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4, 16))):
        start = generator.randrange(len(damaged) + 1)
        stop = min(len(damaged), start + generator.choice((1, 1, 2, 4, 8, 64)))
        match generator.randrange(6):
            case 0:
                damaged[start:stop] = generator.randbytes(stop - start)
            case 1:
                damaged[start:stop] = b""
            case 2:
                damaged[start:start] = damaged[start:stop] * generator.choice((1, 2, 100))
            case 3:
                damaged[start:stop] = generator.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (stop - start)
            case 4:
                other = generator.randrange(len(damaged) + 1)
                damaged[start:stop] = damaged[other : other + stop - start]
            case 5:
                del damaged[start if generator.random() < 0.1 else len(damaged) :]
    return bytes(damaged)


class _Raw(str):
    """JSON text that stands as it is."""


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 255, 2**31 - 1, 2**31, 2**53, 2**62, 2**63, 2**64, -(2**63), 100_000, 2**40),
    *(10**400, -(10**400), _Raw("9" * 5000), 0.0, -0.0, 0.5, 1e-320, 1e308, _Raw("1e999"), _Raw("NaN"), -1e308),
    *(_Raw("Infinity"), _Raw("-Infinity"), {"__float__": "Infinity"}, {"__float__": "nan"}, {"__float__": 10**400}),
    *({"__float__": []}, {"__float__": "x"}, [], {}, [[]], [None], {"": {}}, [1, 2], [0.0, 1.0], "", "x", "x" * 5000),
    *("../x", "/etc/passwd", "\0", "\ud800", "\x1b[2J", "auto", "config.json", "a\nb", "\N{PILE OF POO}" * 50),
    *(_Raw("[" * 500 + "]" * 500), _Raw("[" * 90_000), _Raw('{"a":' * 200 + "1" + "}" * 200), [0] * 3000),
)
"""What is put in place of a value of a JSON file."""


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys or indices."""
    found: list[tuple[Any, Any]] = []
    pending = [node]
    while pending:
        container = pending.pop()
        if isinstance(container, dict | list):
            keys = list(container) if isinstance(container, dict) else range(len(container))
            found += [(container, key) for key in keys]
            pending += [container[key] for key in keys]
    return found


def edited(content: Any, generator: random.Random) -> str:
    """The text of a JSON value in which a few values, keys or members are other ones."""
    raw: dict[str, str] = {}

    def hostile() -> Any:
        """A value; raw text is put in after dumping, in place of a mark."""
        value = generator.choice(VALUES)
        if isinstance(value, int) and abs(value) > 2**64:
            value = _Raw(value)
        if not isinstance(value, _Raw):
            return copy.deepcopy(value)
        mark = f"@{len(raw)}@"
        raw[json.dumps(mark)] = value
        return mark

    content = copy.deepcopy(content)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        places = _places(content)
        if not places:
            return json.dumps(content)
        container, key = generator.choice(places)
        match generator.randrange(5):
            case 0 | 1:
                container[key] = hostile()
            case 2:
                del container[key]
            case 3 if isinstance(container, dict):
                container[generator.choice(["", "x" * 3000, "a\nb", "\x1b[2J", "__metadata__", "\ud800"])] = hostile()
            case 3:
                container.insert(key, hostile())
            case 4:
                other, place = generator.choice(places)
                with contextlib.suppress(LookupError):
                    container[key] = copy.deepcopy(other[place])
    text = json.dumps(content)
    for mark, value in raw.items():
        text = text.replace(mark, value)
    return text


def json_damage(content: bytes, generator: random.Random) -> bytes:
    """A changed copy of a JSON file: mostly well formed, with other values."""
    if generator.random() < 0.2:
        return flipped(content, generator)
    return edited(json.loads(content), generator).encode("utf-8", "surrogatepass")


# What is tried.


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of file."""

    name: str
    make: Callable[[pathlib.Path], pathlib.Path]
    """Fill an empty folder with valid files, and return the one to damage."""
    read: Callable[[pathlib.Path], object]
    """Read the folder (not the file) as a user would."""
    damage: Damage = flipped
    errors: tuple[type[Exception], ...] = (CheckpointError,)
    """The documented errors."""


@dataclasses.dataclass
class Report:
    """What came of it."""

    inputs: int = 0
    accepted: int = 0
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """How often each distinct error came: its class, and its message without names and numbers."""
    longest: float = 0.0
    """Seconds."""
    memory: int = 0
    """Bytes at the peak, beyond what there was before."""
    failures: list[str] = dataclasses.field(default_factory=list)
    """What must not be."""

    def __str__(self) -> str:
        """For reading."""
        peak = f"{self.memory / 2**20:.0f} MiB"
        counts = f"{self.inputs} inputs, {self.accepted} accepted, {len(self.errors)} distinct errors"
        return f"{counts}, at most {self.longest:.2f} s, {peak} more at the peak, {len(self.failures)} failures"


def fuzz(kind: Kind, folder: pathlib.Path, count: int, seed: int = 0) -> Report:
    """Read `count` damaged copies of a file.

    **Arguments:**

    - `kind`: what is read.
    - `folder`: empty.
    - `count`, `seed`: how many copies, and which.

    **Returns:** a report, whose `failures` must be empty.
    """
    generator, report = random.Random(f"{kind.name} {seed}"), Report()
    path = kind.make(folder)
    content = path.read_bytes()
    kind.read(folder)  # valid; imports what it needs
    for number in range(count):
        damaged = kind.damage(content, generator)
        path.write_bytes(damaged)
        failure = _read(kind, folder, report, len(damaged))
        if failure:
            kept = folder.with_name(f"{folder.name}-{number}")
            kept.write_bytes(damaged)
            report.failures.append(f"{kind.name} {number} ({kept}): {failure}")
    path.write_bytes(content)
    kind.read(folder)  # still
    return report


def _read(kind: Kind, folder: pathlib.Path, report: Report, size: int) -> str | None:
    """One reading, noted in the report; what must not be."""
    report.inputs += 1
    message = ""
    _reset_peak()
    before, start = _memory("VmRSS"), time.perf_counter()
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # a loop that no exception reaches
    try:
        with _watched(folder) as outside, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            kind.read(folder)
        report.accepted += 1
    except kind.errors as error:
        message = str(error)
        report.errors[f"{type(error).__name__}: {_shape_of(message)}"] += 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return f"raised {type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds, memory = time.perf_counter() - start, _memory("VmHWM") - before
    report.longest, report.memory = max(report.longest, seconds), max(report.memory, memory)
    if outside:
        return f"did {outside[:3]}"
    if seconds > SECONDS:
        return f"took {seconds:.1f} s"
    if memory > 1.5 * size + MEMORY:
        return f"took {memory / 2**20:.0f} MiB for {size} bytes"
    longest = max(map(len, [message, *(str(warning.message) for warning in warned)]))
    if longest > MESSAGE:
        return f"a message of {longest} characters"
    return None


def _shape_of(message: str) -> str:
    """The first line of a message without names, values and numbers."""
    return re.sub(r"`[^`]*`|'[^']*'|\d+", "_", message.partition("\n")[0])[:120]


# What the process does meanwhile.

_WATCHING: list[tuple[str, list[str]]] = []
_FORBIDDEN = re.compile(r"(os\.(system|exec|spawn|posix_spawn|fork|remove|rename|rmdir)|subprocess|socket)\b")
_HARMLESS = (*filter(None, sys.path), sys.prefix, sys.base_prefix, "/proc/self", "/usr/share/zoneinfo")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Python calls this at every event that matters; see <https://docs.python.org/3/library/audit_events.html>."""
    if not _WATCHING:
        return
    folder, outside = _WATCHING[-1]
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith((folder, *_HARMLESS)):
            outside.append(f"open {path}")
    elif _FORBIDDEN.match(event):
        outside.append(f"{event} {str(arguments)[:100]}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def _watched(folder: pathlib.Path) -> Iterator[list[str]]:
    """Fills a list with the files opened outside the folder, and with processes and connections."""
    outside: list[str] = []
    _WATCHING.append((os.path.realpath(folder) + os.sep, outside))
    try:
        yield outside
    finally:
        _WATCHING.pop()


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # Linux alone has it
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    """`VmRSS` or `VmHWM` of this process in bytes, or 0 where the system does not say."""
    with contextlib.suppress(OSError):
        found = re.search(rf"{name}:\s*(\d+) kB", pathlib.Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0
