"""The JSON file of an artefact, which holds everything that a reader must know, as data."""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .._keys import Key, fields_of, record
from .._kinds import Kind, Problems, checked, items, mapping, positive, text, whole
from ..checkpoint import CheckpointError, shown
from ..checkpoint._json import read_json
from ..checkpoint._layout import Layout
from ..checkpoint._source import Reshape, Shape, Slice, Source, Stack, Step, Transpose


MANIFEST = "exported.json"
WEIGHTS = "weights.safetensors"
FORMAT = "ssmkit exported model"
VERSION = 3
_MOST_LENGTHS = 1000
_KINDS: dict[type, str] = {Reshape: "reshape", Transpose: "transpose", Slice: "slice", Stack: "stack"}


class Spec(NamedTuple):
    """The dtype and shape of an array."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Any) -> "Spec":
        """The spec of any object that has a shape and a dtype."""
        return cls(np.dtype(array.dtype).name, tuple(array.shape))

    @property
    def numpy_dtype(self) -> np.dtype:
        """The NumPy dtype."""
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
    """The content of `exported.json`."""

    versions: Mapping[str, str]
    """The versions of the software that made the artefact, for a report."""
    vocab_size: int
    eos_token_id: tuple[int, ...]
    lengths: tuple[int, ...]
    """The numbers of tokens that `prefill_*` and `forward_*` take at a time, in increasing order."""
    weights: Mapping[str, Spec]
    cache: Mapping[str, Spec]
    """The arrays of one sequence's cache; programs called `*_batch` have a leading batch axis on each."""
    logits: str
    """The dtype of the logits."""
    programs: Mapping[str, Mapping[str, File]]
    """The files of programs, by platform and name."""
    layouts: Mapping[str, Layout]
    """The layout of the weights in each checkpoint format, by the name of the format."""

    def to_json(self) -> str:
        """The text of the file."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps({"format": FORMAT, "version": VERSION, **_plain(fields)}, indent=1, sort_keys=True) + "\n"


def _plain(value: Any) -> Any:
    """Replace named tuples by dictionaries, and steps of a source by lists."""
    if isinstance(value, Source):
        steps = [[_KINDS[type(step)], *dataclasses.astuple(step)] for step in value.steps]
        value = {"name": value.name, "steps": tuple(map(tuple, steps))}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Read the manifest of an artefact, and check every part of it.

    **Arguments:**

    - `folder`: the artefact.

    **Returns:** the manifest.

    **Raises:** `CheckpointError` when the manifest is missing, has another version, or is malformed.
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
    try:
        manifest = Manifest(**fields_of(content, _KEYS))
        others = [name for name, layout in manifest.layouts.items() if layout.sources.keys() != manifest.weights.keys()]
        if others:
            need = "must have a source for every weight, and for nothing else"
            raise Problems((f".layouts.{name}.sources", need) for name in others)
    except Problems as problems:
        raise CheckpointError(f"`{path}` is damaged, or was not written by ssmkit.", problems.lines) from None
    return manifest


def _matching(pattern: str, expected: str) -> Kind:
    """A kind: a string that matches a pattern."""

    def parse_matching(value: Any) -> str:
        """As `_matching`."""
        if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
            raise ValueError(expected)
        return value

    return parse_matching


def _ids(value: Any) -> tuple[int, ...]:
    """A kind: a list of token ids, one token id, or null."""
    return items(whole)([] if value is None else value if isinstance(value, list) else [value])


def _lengths(value: Any) -> tuple[int, ...]:
    """A kind: the lengths of programs."""
    lengths = items(positive)(value)
    if not 0 < len(lengths) <= _MOST_LENGTHS:
        raise ValueError(f"from 1 to {_MOST_LENGTHS} lengths")
    if list(lengths) != sorted(set(lengths)):
        raise ValueError("increasing lengths")
    return lengths


def _size(value: Any) -> int:
    """A kind: a size in a shape, or -1 for a size that follows from the others."""
    return value if value == -1 and type(value) is int else whole(value)


def _step(value: Any) -> Step:
    """A kind: a step of a source, as its name and its arguments."""
    known = {name: step for step, name in _KINDS.items()}
    if not isinstance(value, list) or not value or value[0] not in tuple(known):
        raise ValueError(f"a step, one of {', '.join(known)}")
    fields = dataclasses.fields(known[value[0]])
    if len(value) != 1 + len(fields):
        raise ValueError(f"a {value[0]} of {', '.join(field.name for field in fields)}")
    kinds = (items(_size) if field.type == Shape else whole for field in fields)
    parts = checked((f"[{i}]", part, kind) for i, (part, kind) in enumerate(zip(value[1:], kinds, strict=True), 1))
    return known[value[0]](*parts)


def _all(build: Callable[..., Any], **kinds: Kind) -> Kind:
    """A kind: an object with exactly these keys, which become the arguments of `build`."""
    return record({name: Key(kind, name) for name, kind in kinds.items()}, build)


_DTYPE = _matching(
    r"bool|u?int(8|16|32|64)|float(16|32|64)|bfloat16|complex(64|128)|float8_e4m3fn|float8_e5m2", "a dtype"
)
_SPEC = _all(Spec, dtype=_DTYPE, shape=items(whole))
_FILE = _all(
    File,
    path=_matching(r"(\w+/)?\w[\w.]*", "a file of this folder"),
    sha256=_matching(r"[0-9a-f]{64}", "a SHA-256"),
)
_LAYOUT = _all(
    Layout,
    files=items(_matching(r"\w[\w.-]*", "a file's name")),
    sources=mapping(_all(Source, name=text, steps=items(_step))),
    spellings=mapping(text),
    copies=mapping(text),
    ignored=items(text),
)
_KEYS = {
    "versions": Key(mapping(text), "versions"),
    "vocab_size": Key(positive, "vocab_size"),
    "eos_token_id": Key(_ids, "eos_token_id"),
    "lengths": Key(_lengths, "lengths"),
    "weights": Key(mapping(_SPEC), "weights"),
    "cache": Key(mapping(_SPEC), "cache"),
    "logits": Key(_DTYPE, "logits"),
    "programs": Key(mapping(mapping(_FILE)), "programs"),
    "layouts": Key(mapping(_LAYOUT), "layouts"),
}
