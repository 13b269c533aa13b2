"""The JSON file of an artefact: everything that a reader must know, as data."""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..checkpoint import CheckpointError, shown
from ..checkpoint._json import read_json
from ..checkpoint._layout import Layout
from ..checkpoint._source import Reshape, Shape, Slice, Source, Stack, Step, Transpose


MANIFEST = "exported.json"
WEIGHTS = "weights.safetensors"
FORMAT = "ssmkit exported model"
VERSION = 2
_MOST_SEGMENTS = 1000
_KINDS: dict[type, str] = {Reshape: "reshape", Transpose: "transpose", Slice: "slice", Stack: "stack"}

_DTYPE = re.compile(r"(bool|u?int(8|16|32|64)|float(16|32|64)|bfloat16|complex(64|128)|float8_e4m3fn|float8_e5m2)")


class Spec(NamedTuple):
    """The dtype and shape of an array."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Any) -> "Spec":
        """The spec of anything that has a shape and a dtype."""
        return cls(np.dtype(array.dtype).name, tuple(array.shape))

    @property
    def numpy_dtype(self) -> np.dtype:
        """The dtype itself."""
        return np.dtype(getattr(ml_dtypes, self.dtype, self.dtype))

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class File(NamedTuple):
    """A file of the artefact, and the SHA-256 of its content."""

    path: str
    sha256: str

    @classmethod
    def of(cls, path: str, content: bytes) -> "File":
        """The record of a file with this content."""
        return cls(path, hashlib.sha256(content).hexdigest())


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `exported.json` says."""

    versions: Mapping[str, str]
    """The versions of the software that made the artefact, for a report."""
    vocab_size: int
    eos_token_id: tuple[int, ...]
    segments: tuple[int, ...]
    """Tokens that `prefill_*` and `forward_*` take at a time, increasing."""
    weights: Mapping[str, Spec]
    cache: Mapping[str, Spec]
    """The arrays of one sequence's cache; programs called `*_batch` have a leading batch axis on each."""
    logits: str
    """The dtype of the logits."""
    programs: Mapping[str, Mapping[str, File]]
    """By platform and name."""
    layouts: Mapping[str, Layout]
    """By the name of a checkpoint format."""

    def to_json(self) -> str:
        """The file's content."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps({"format": FORMAT, "version": VERSION, **_plain(fields)}, indent=1, sort_keys=True) + "\n"


def _plain(value: Any) -> Any:
    """With dictionaries where there are named tuples, and lists where there are steps of a source."""
    if isinstance(value, Source):
        steps = [[_KINDS[type(step)], *dataclasses.astuple(step)] for step in value.steps]
        value = {"name": value.name, "steps": tuple(map(tuple, steps))}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def read_manifest(folder: pathlib.Path) -> Manifest:
    """The manifest of an artefact, every part of it checked.

    **Arguments:**

    - `folder`: the artefact.

    **Returns:** the manifest.

    **Raises:** `CheckpointError` when there is none, it is of another version, or anything in it is malformed.
    """
    path = folder / MANIFEST
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"`{path}` describes no exported model: got format {shown(content.get('format'))}.")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"`{path}` has version {shown(content.get('version'))} of the format, and this ssmkit reads version "
            f"{VERSION}. Export the model again, or use the ssmkit that made the artefact."
        )
    reader = _Reader(content)
    fields = dict(
        versions=reader.mapping("versions", _text),
        vocab_size=reader.value("vocab_size", _positive),
        eos_token_id=reader.value("eos_token_id", _ids),
        segments=reader.value("segments", _segments),
        weights=reader.mapping("weights", _spec),
        cache=reader.mapping("cache", _spec),
        logits=reader.value("logits", _dtype),
        programs=reader.mapping("programs", lambda value: _mapping(value, _file)),
        layouts=reader.mapping("layouts", _layout),
    )
    if not reader.problems:
        reader.problems += [
            f"`layouts`: expected of `{name}` a source for every weight, and for nothing else"
            for name, layout in fields["layouts"].items()
            if layout.sources.keys() != fields["weights"].keys()
        ]
    if reader.problems:
        raise CheckpointError(f"`{path}` is damaged, or was not written by ssmkit.", reader.problems)
    return Manifest(**fields)


class _Reader:
    """Reads entries and notes every problem; what it returns then is not looked at."""

    def __init__(self, content: Mapping[str, Any]):
        """**Arguments:** `content`: the object that a file holds."""
        self.content = content
        self.problems: list[str] = []

    def value(self, name: str, parse: Any) -> Any:
        """One entry, checked by `parse`, which raises `ValueError` saying what was expected."""
        if name not in self.content:
            self.problems.append(f"`{name}`: missing")
            return None
        try:
            return parse(self.content[name])
        except ValueError as error:
            self.problems.append(f"`{name}`: expected {error}")

    def mapping(self, name: str, parse: Any) -> Any:
        """One entry that is an object, each value of it checked by `parse`."""
        return self.value(name, lambda value: _mapping(value, parse))


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _mapping(value: Any, parse: Any) -> dict[str, Any]:
    _expect(isinstance(value, dict), f"an object, got {type(value).__name__}")
    found = {}
    for name, entry in value.items():
        try:
            found[name] = parse(entry)
        except ValueError as error:
            raise ValueError(f"of `{name}` {error}") from None
    return found


def _natural(value: Any) -> int:
    _expect(type(value) is int and 0 <= value < 2**63, f"an integer of at least 0, got {shown(value)}")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    """The ids of tokens: a list, one, or null."""
    return _sequence([] if value is None else value if isinstance(value, list) else [value], _natural)


def _positive(value: Any) -> int:
    _expect(_natural(value) > 0, "an integer of at least 1, got 0")
    return value


def _text(value: Any) -> str:
    _expect(isinstance(value, str), f"a string, got {shown(value)}")
    return value


def _sequence(value: Any, parse: Any) -> tuple[Any, ...]:
    _expect(isinstance(value, list), f"a list, got {shown(value)}")
    return tuple(map(parse, value))


def _segments(value: Any) -> tuple[int, ...]:
    segments = _sequence(value, _positive)
    _expect(len(segments) <= _MOST_SEGMENTS, f"at most {_MOST_SEGMENTS} lengths, got {len(segments)}")
    _expect(len(segments) > 0 and list(segments) == sorted(set(segments)), f"increasing lengths, got {shown(value)}")
    return segments


def _dtype(value: Any) -> str:
    _expect(isinstance(value, str) and _DTYPE.fullmatch(value) is not None, f"a dtype, got {shown(value)}")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    return _sequence(value, _natural)


def _object(value: Any, *names: str) -> list[Any]:
    """The values of an object that has exactly these keys."""
    _expect(isinstance(value, dict) and value.keys() == set(names), f"an object with {', '.join(names)}")
    return [value[name] for name in names]


def _spec(value: Any) -> Spec:
    dtype, shape = _object(value, "dtype", "shape")
    return Spec(_dtype(dtype), _shape(shape))


def _file(value: Any) -> File:
    path, sha256 = _object(value, "path", "sha256")
    _expect(re.fullmatch(r"(\w+/)?\w[\w.]*", _text(path)) is not None, f"a file of this folder, got {shown(path)}")
    _expect(re.fullmatch(r"[0-9a-f]{64}", _text(sha256)) is not None, f"a SHA-256, got {shown(sha256)}")
    return File(path, sha256)


def _name(value: Any) -> str:
    """The name of a file, without a folder."""
    _expect(re.fullmatch(r"\w[\w.-]*", _text(value)) is not None, f"a file's name, got {shown(value)}")
    return value


def _layout(value: Any) -> Layout:
    files, sources, spellings, copies = _object(value, *Layout._fields)
    return Layout(
        files=_sequence(files, _name),
        sources=_mapping(sources, _source),
        spellings=_mapping(spellings, _text),
        copies=_mapping(copies, _text),
    )


def _source(value: Any) -> Source:
    name, steps = _object(value, "name", "steps")
    return Source(_text(name), _sequence(steps, _step))


def _step(value: Any) -> Step:
    """A step of a source: its kind, and what it is made of."""
    kind, *given = [_text(value[0]), *value[1:]] if isinstance(value, list) and value else [""]
    known = {name: step for step, name in _KINDS.items()}
    _expect(kind in known, f"a step, one of {', '.join(known)}, got {shown(kind)}")
    fields = dataclasses.fields(known[kind])
    _expect(len(given) == len(fields), f"a {kind} of {', '.join(field.name for field in fields)}, got {shown(given)}")
    parse = [_sizes if field.type == Shape else _natural for field in fields]
    return known[kind](*(read(part) for read, part in zip(parse, given, strict=True)))


def _sizes(value: Any) -> Shape:
    return _sequence(value, _size)


def _size(value: Any) -> int:
    """A size of a shape, or the -1 of one that follows from others."""
    return value if value == -1 and type(value) is int else _natural(value)
