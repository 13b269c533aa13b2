"""Detection of a checkpoint: its architecture, its format and its tensors."""

import dataclasses
import itertools
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .._config import checks_itself
from .._shown import one_line, shown
from ._dialect import Architecture, Dialect, architectures
from ._errors import CheckpointError
from ._foreign import ADAPTER_FILE, foreign_files, lone_shards, refuse_foreign_file, stray_weights
from ._generation import GENERATION_FILE, GenerationSettings, read_generation
from ._hub import locate
from ._json import read_json
from ._skeleton import check_sizes
from ._stored import StoredTensor
from ._tensors import open_tensors, shard_names


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The description of a checkpoint, made without reading its weights."""

    architecture: Architecture
    dialect: Dialect
    config: Any
    tensors: Mapping[str, StoredTensor]
    """The tensors, by their names in the files; each has a `path`, `dtype`, `shape` and `nbytes`."""
    generation: GenerationSettings = GenerationSettings()
    """How the checkpoint is meant to generate, by its `generation_config.json`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the names of architecture and dialect. The process that unpickles must have registered both."""
        names = self.architecture.name, self.dialect.name
        return _checkpoint, (*names, self.config, dict(self.tensors), self.generation)


def _checkpoint(
    architecture: str,
    dialect: str,
    config: Any,
    tensors: Mapping[str, StoredTensor],
    generation: GenerationSettings,
) -> Checkpoint:
    """Unpickle a `Checkpoint` by the names of its architecture and dialect."""
    for known in architectures():
        for spoken in known.dialects:
            if (known.name, spoken.name) == (architecture, dialect):
                return Checkpoint(known, spoken, config, tensors, generation)
    raise CheckpointError(f"No registered architecture is called `{architecture}` with a format `{dialect}`.")


@checks_itself
def describe(source: str | os.PathLike[str], *, revision: str | None = None, strict: bool = False) -> Checkpoint:
    """Detect the architecture and format of a checkpoint, and list its tensors.

    **Arguments:**

    - `source`, `revision`, `strict`: as for `from_pretrained`.

    **Returns:** a `Checkpoint`; no weight has been read.

    **Raises:** `CheckpointError`, as `from_pretrained`.
    """
    return detect(source, revision, strict)


@checks_itself
def detect(source: str | os.PathLike[str], revision: str | None, strict: bool) -> Checkpoint:
    """As `describe`. A public function calls it directly, so that warnings point to the user's line."""
    place = locate(source, revision)
    if not isinstance(strict, bool):
        raise CheckpointError(f"`strict` must be True or False, got {shown(strict)}.")
    folder = place.fetch(sorted({*_config_files(), GENERATION_FILE, ADAPTER_FILE}))
    file = place.path if place.path is not None and place.path != folder else None
    for path in (file, *map(folder.joinpath, _config_files())):
        if path is not None:
            refuse_foreign_file(path)
    contents = {name: read_json(folder / name) for name in sorted(_config_files()) if (folder / name).exists()}
    found = [
        (architecture, dialect, contents[dialect.config_file])
        for architecture in architectures()
        for dialect in architecture.dialects
        if dialect.config_file in contents and dialect.matches(contents[dialect.config_file])
    ]
    if not found:
        problems = [*foreign_files(place.names())] or [*_unknown(contents)]
        raise CheckpointError(f"`{source}` holds no model of a known architecture.", problems)
    if (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"`{source}` holds an adapter (`{ADAPTER_FILE}`) beside a model, which would change its results and is not "
            "applied. Merge it into the model (`merge_and_unload()` of peft) and save that alone, or remove its files."
        )
    # A folder may hold two dialects of one model: the dialect of the named weight file comes first.
    found.sort(key=lambda entry: file is not None and file.name not in entry[1].weight_files)
    generation = read_generation(folder)
    for architecture, dialect, content in found:
        config = _with_stop_tokens(configured(dialect, content), generation)
        unknown = dialect.unknown_keys(content)
        if strict and unknown:
            raise CheckpointError(
                f"`{folder / dialect.config_file}` has keys that are unknown, and may change the model. Remove those "
                "that do not, or load it without `strict`.",
                [f"`{key}`: got {shown(value)}" for key, value in unknown.items()],
            )
        for weights in map(folder.joinpath, dialect.weight_files) if file is None else [file]:
            place.fetch([weights.name])
            if not weights.exists():
                continue
            shards = sorted(set(shard_names(weights).values())) if weights.name.endswith(".index.json") else []
            place.fetch(shards) if shards else None
            for path in (weights, *map(weights.with_name, shards)):
                refuse_foreign_file(path)
            tensors = open_tensors(weights)
            check_sizes(architecture, dialect, config, tensors)
            if unknown:
                path = one_line(str(folder / dialect.config_file), 1000)
                warnings.warn(
                    f"`{path}` has keys that are unknown and were ignored: {_listed(unknown)}. If they change the "
                    "model, its results are wrong; `strict=True` refuses such keys.",
                    stacklevel=3,
                )
            return Checkpoint(architecture, dialect, config, tensors, generation)
    expected = " or ".join(f"`{name}`" for _, dialect, _ in found for name in dialect.weight_files)
    names = place.names()
    others = stray_weights(names)
    found_instead = f" Found {_listed(others)}: give the path of the one to load." if others else ""
    raise CheckpointError(
        f"`{source}` holds no weights: expected {expected}.{found_instead}",
        [*foreign_files(names), *lone_shards(names)],
    )


def _listed(names: Collection[str]) -> str:
    """The first 20 names on one line, and the number of the others."""
    first = ", ".join(f"`{one_line(name)}`" for name in itertools.islice(names, 20))
    return first if len(names) <= 20 else f"{first} and {len(names) - 20} more"


def _config_files() -> set[str]:
    """The names of all known configuration files."""
    return {dialect.config_file for architecture in architectures() for dialect in architecture.dialects}


def configured(dialect: Dialect, content: Mapping[str, Any]) -> Any:
    """Read the model's configuration; turn any exception of `Dialect.read_config` into a `CheckpointError`."""
    try:
        return dialect.read_config(content)
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"`{dialect.config_file}` describes no model ({type(error).__name__}: {error})."
        ) from error


def _with_stop_tokens(config: Any, generation: GenerationSettings) -> Any:
    """The configuration with the stop tokens of the settings for generation, as HF's `generate` uses them.

    The configuration stays unchanged if they name no `eos_token_id`, or if it has no such field.
    """
    if generation.eos_token_id is None or not hasattr(config, "eos_token_id"):
        return config
    return dataclasses.replace(config, eos_token_id=generation.eos_token_id)


def _unknown(contents: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The error for an unknown configuration: it names what was found, and the known configurations."""
    for name, content in contents.items():
        yield f"`{name}`: got model_type {shown(content.get('model_type'))} and the keys {', '.join(sorted(content))}"
    for architecture in architectures():
        for dialect in architecture.dialects:
            yield f"known: {architecture.name} in the {dialect.name} format, with `{dialect.config_file}`"
