"""Checkpoint formats as data: architectures, their dialects, and the registry of architectures."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jaxtyping import DTypeLike

from .._model_config import LanguageModelConfig, build_language_model
from .._plugins import Named
from .._residual_model import LanguageModel
from .._shown import shown
from .._types import PRNGKeyArray
from ._errors import CheckpointError
from ._layout import Layout
from ._source import Source


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One on-disk format of one architecture."""

    name: str
    config_file: str
    weight_files: tuple[str, ...]
    """The weight files in order of preference, an index (`*.index.json`) for its shards. The first one is written."""
    matches: Callable[[Mapping[str, Any]], bool]
    """Whether a configuration file is of this dialect; must not raise."""
    read_config: Callable[[Mapping[str, Any]], Any]
    """Reads the model's configuration; raises `CheckpointError` listing every unsupported key."""
    names: Callable[[Any], Mapping[str, Source]]
    """A function from the model's configuration to the source of each array, by the array's path in the model.

    There may be sources for arrays that the model does not have, such as biases that are switched off.
    """
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Alternative spellings of a tensor's name, which are read but not written."""
    base: str = ""
    """The prefix of all names in a file with a head. A file of the model without its head may leave the prefix out."""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """For tensors that a model with tied weights does not have: the tensor of which they may be a copy."""
    unknown_keys: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda content: {}
    """The unknown keys of a configuration file, with their values. They are ignored with a warning."""
    write_config: Callable[[Any, str], dict[str, Any]] | None = None
    """Writes a configuration, given the name of the weights' dtype; `None` when the dialect is only read."""
    writes_copies: bool = False
    """Whether `copies` are written too."""
    ignored: tuple[str, ...] = ()
    """Patterns of names of tensors that are no part of the model and are not read; `*` stands for any characters."""

    def layout(self, config: Any, paths: Iterable[str]) -> Layout:
        """The sources of all arrays of one model.

        **Arguments:**

        - `config`: the model's configuration.
        - `paths`: the paths of its arrays.

        **Raises:** `CheckpointError` naming every array for which the format has no source.
        """
        places, sources = self.names(config), {}
        homeless = []
        for path in paths:
            if path in places:
                sources[path] = places[path]
            else:
                homeless.append(f"`{path}`: no tensor holds it")
        if homeless:
            raise CheckpointError(f"The {self.name} format has no place for arrays of this model.", homeless)
        written = dict.fromkeys([*(name for source in sources.values() for name in source.names), *self.copies])
        spellings = {other: name for name in written for other in self._spellings(name) if other not in written}
        return Layout(self.weight_files, sources, spellings, self.copies, self.ignored)

    def _spellings(self, name: str) -> Iterator[str]:
        """The alternative spellings of a tensor's name that are accepted on reading."""
        names = [name, *(alias for alias, written in self.aliases.items() if written == name)]
        yield from names[1:]
        for spelling in names:
            if self.base and spelling.startswith(self.base):
                yield spelling.removeprefix(self.base)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model class and the dialects in which its checkpoints are found.

    An installed package adds its own with an entry point of the group `ssmkit.architectures`.
    """

    name: str
    config: type
    """The class of the models' configurations; `model.config` must be one."""
    dialects: tuple[Dialect, ...]
    """The dialects of the architecture. By default the first is written."""
    model: type = LanguageModel
    """The class of the models. `model(config, key=key, dtype=dtype)` makes one, unless there is a `description`.

    The arrays of a model must have the shapes of the checkpoint. Arrays that are float32 although `dtype` is narrower
    stay float32.
    """
    description: Callable[[Any], LanguageModelConfig] | None = None
    """Describes the model of a configuration as data, of which it is then built."""
    layers: str | None = None
    """The field of the configuration that counts the model's layers.

    A configuration of more layers than the files have tensors is refused before the model is built. Without this field,
    the number of layers is not checked.
    """
    equal_layers: bool = True
    """Whether all `layers` have the same shapes, so that only one is built to learn the shapes of all.

    The first index of an array's path is then that of the layer, or of a block if every layer has the same number of
    blocks.
    """

    def make(self, config: Any, *, key: PRNGKeyArray, dtype: DTypeLike) -> Any:
        """A model of a configuration, initialised at random."""
        if self.description is None:
            return self.model(config, key=key, dtype=dtype)
        return build_language_model(self.description(config), described=config, key=key, dtype=dtype)


ARCHITECTURES = Named(
    "ssmkit.architectures",
    {"ssmkit": "ssmkit.checkpoint._own_format:ARCHITECTURE"},
    models="ssmkit.models.names:ARCHITECTURES",
)


def architectures() -> list[Architecture]:
    """Every architecture, ssmkit's own first.

    **Raises:** `CheckpointError` when the architecture of another package cannot be imported, or is not one.
    """
    return [_architecture(name) for name in ARCHITECTURES.names()]


def architectures_of(model: Any) -> list[Architecture]:
    """The architectures that a model is of, by its class and that of its configuration: one, or none."""
    config = getattr(model, "config", None)
    return [known for known in architectures() if type(model) is known.model and isinstance(config, known.config)]


def _architecture(name: str) -> Architecture:
    try:
        found = ARCHITECTURES[name]
    except Exception as error:  # of another package
        raise CheckpointError(f"The architecture `{name}` of another package cannot be imported: {error}") from error
    if not isinstance(found, Architecture):
        raise CheckpointError(f"The architecture `{name}` of another package is {shown(found)}, no `Architecture`.")
    return found
