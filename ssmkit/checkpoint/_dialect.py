"""What a checkpoint looks like on disk, as data: architectures, their dialects, and the registry of both."""

import dataclasses
import importlib
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ._errors import CheckpointError


def insert_axis(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A `Dialect.file_shapes` entry: `(channel, kernel)` is stored as `(channel, 1, kernel)`."""
    return (shape[0], 1, *shape[1:])


def flatten(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A `Dialect.file_shapes` entry: `(heads, value)` is stored as `(heads * value,)`."""
    return (math.prod(shape),)


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One on-disk layout of one architecture.

    Names are patterns: `{}` stands for an index, in the same order on both sides, as in
    `{"blocks.{}.norm.weight": "backbone.layers.{}.norm.weight"}`.
    """

    name: str
    config_file: str
    weight_files: tuple[str, ...]
    """In order of preference; an index (`*.index.json`) stands for its shards. The first is the one that is written."""
    matches: Callable[[Mapping[str, Any]], bool]
    """Whether a configuration file is of this dialect; must not raise."""
    read_config: Callable[[Mapping[str, Any]], Any]
    """The model's configuration; raises `CheckpointError` listing every key that cannot be honoured."""
    names: Mapping[str, str]
    """From the path of an array in the model to the name of its tensor."""
    file_shapes: Mapping[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    """For tensors stored in another shape: from the model's path to the stored shape, given the model's."""
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Other spellings of a tensor's name that are read, but not written."""
    base: str = ""
    """What the names of a model begin with that has a head; a file of the model without its head may leave it out."""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Tensors that the model does not have when it ties weights, and of which tensor they may then be a copy."""
    unknown_keys: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda content: {}
    """The keys of a configuration file that nobody here has heard of, which are ignored with a warning, and values."""
    write_config: Callable[[Any, str], dict[str, Any]] | None = None
    """From a configuration and the name of the weights' dtype; `None` when the dialect is only read."""
    writes_copies: bool = False
    """Whether `copies` are written too."""

    def tensor_name(self, path: str) -> str:
        """The tensor that holds the array at `path` in the model.

        **Raises:** `CheckpointError` when the dialect has no place for it.
        """
        pattern, indices = _pattern(path)
        if pattern not in self.names:
            raise CheckpointError(f"The {self.name} format has no place for the array `{path}`.")
        return self.names[pattern].format(*indices)

    def canonical(self, name: str, known: Collection[str]) -> str:
        """The spelling of a tensor's name that is written.

        **Arguments:**

        - `name`: as a file spells it.
        - `known`: every name that a file may have, in the spelling that is written.

        **Returns:** one of `known`, or `name` itself if it stands for none of them.
        """
        for spelling in (name, self.base + name):
            spelling = self.aliases.get(spelling, spelling)
            if spelling in known:
                return spelling
        return name

    def spellings(self, name: str) -> tuple[str, ...]:
        """Every spelling of a tensor's name that is read, the one that is written first."""
        names = [name, *(alias for alias, written in self.aliases.items() if written == name)]
        bare = [spelling.removeprefix(self.base) for spelling in names if spelling.startswith(self.base)]
        return tuple(dict.fromkeys(names + bare))

    def file_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in which the array at `path`, of `shape` in the model, is stored."""
        pattern, _ = _pattern(path)
        return self.file_shapes.get(pattern, tuple)(shape)

    def in_layer(self, path: str, layer: int) -> str:
        """The path of the same array in another layer: with another first index, if it has one."""
        pattern, indices = _pattern(path)
        return pattern.format(layer, *indices[1:]) if indices else path


def _pattern(path: str) -> tuple[str, list[str]]:
    """`blocks.3.norm` is `blocks.{}.norm` and `["3"]`."""
    component = r"(?<![^.])\d+(?![^.])"
    return re.sub(component, "{}", path), re.findall(component, path)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model class and the dialects in which its checkpoints are found.

    `model(config, key=key, dtype=dtype)` must build a model whose arrays have the shapes that the checkpoint must have;
    arrays that it builds in float32 although `dtype` is narrower stay float32. `model.config` must give `config` back.
    """

    name: str
    model: type
    dialects: tuple[Dialect, ...]
    layers: str | None = None
    """The field of the configuration that counts the model's layers, if it has layers and all have the same shapes.

    The first index of a name in a `Dialect` is then that of the layer. A configuration of more layers than the files
    can fill is refused before the model is laid out; without this field, a configuration may ask for any number.
    """


_REGISTRY: dict[str, str | Architecture] = {
    "mamba": "ssmkit.models.mamba_formats",
    "mamba2": "ssmkit.models.mamba2_formats",
}


def register_architecture(architecture: Architecture) -> None:
    """Make `from_pretrained`, `save_pretrained` and `describe` know an architecture.

    **Arguments:**

    - `architecture`: replaces the registered one of the same name, if any, and is tried before all others.
    """
    _REGISTRY.pop(architecture.name, None)
    _REGISTRY[architecture.name] = architecture


def architectures() -> list[Architecture]:
    """Every registered architecture, the latest first.

    A built-in one is registered as the name of a module that has an `ARCHITECTURE`, and imported here.
    """
    for name, entry in _REGISTRY.items():
        if isinstance(entry, str):
            _REGISTRY[name] = importlib.import_module(entry).ARCHITECTURE
    return [entry for entry in reversed(_REGISTRY.values()) if isinstance(entry, Architecture)]
