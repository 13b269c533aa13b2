"""The skeleton of a model before its weights are loaded: the shapes of its arrays, bounded by the files.

A configuration has a few bytes and may name any size. Before a skeleton is made, the sizes are compared with the
content of the files, and the tensors of all layers with those of the first layer.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import DTypeLike

from .._shown import shown
from ._dialect import Architecture, Dialect
from ._errors import CheckpointError
from ._stored import StoredTensor


_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
_FREE = 1 << 20  # integers up to here may be anything, such as the id of a token or a number of tokens
_FREE_ENTRIES = 64  # lists up to here may be anything, such as the ids that end a text


def check_sizes(architecture: Architecture, dialect: Dialect, config: Any, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse a configuration with a size that the tensors cannot have.

    No size of a model is larger than the number of its weights, and every layer has its own tensors.

    **Arguments:**

    - `architecture`, `dialect`, `config`: the configuration, with its architecture and dialect.
    - `tensors`: all tensors of the files.

    **Raises:** `CheckpointError` listing every such size.
    """
    numbers = sum(tensor.size for tensor in tensors.values())
    names = [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    problems = []
    for name in names:
        value = getattr(config, name)
        if name == architecture.layers and value > len(tensors):
            problems.append(f"`{name}`: got {shown(value)}, and the files hold {len(tensors):,} tensors")
        elif isinstance(value, tuple) and len(value) > max(len(tensors), _FREE_ENTRIES):
            problems.append(f"`{name}`: got {len(value):,} entries, and the files hold {len(tensors):,} tensors")
        else:
            problems += [
                f"`{place}`: got {shown(size)}, and the files hold {numbers:,} numbers"
                for place, size in _integers(name, value)
                if size > max(numbers, _FREE)
            ]
    if problems:
        raise CheckpointError(f"`{dialect.config_file}` describes a model that is larger than its weights.", problems)


def _integers(place: str, value: Any) -> Iterator[tuple[str, int]]:
    """The integers in a value of a configuration, each with its place."""
    if isinstance(value, int):
        yield place, value
    elif isinstance(value, tuple):
        for i, entry in enumerate(value):
            yield from _integers(f"{place}[{i}]", entry)
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _integers(f"{place}.{name}", entry)


def skeleton(architecture: Architecture, dialect: Dialect, config: Any, dtype: DTypeLike) -> Any:
    """The model with `jax.ShapeDtypeStruct`s in place of arrays.

    **Arguments:**

    - `architecture`, `dialect`, `config`: the configuration of the model, with its architecture and dialect.
    - `dtype`: as for the model's class.

    **Raises:** `CheckpointError` when the configuration describes no model.
    """
    return _laid_out(dialect, lambda: architecture.make(config, key=jax.random.key(0), dtype=dtype))


def _laid_out(dialect: Dialect, build: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function, with `jax.ShapeDtypeStruct`s in place of arrays. Its exceptions blame the file."""
    try:
        return eqx.filter_eval_shape(build, *arguments)
    except (ArithmeticError, MemoryError, TypeError, ValueError, jax.errors.JaxRuntimeError) as error:
        raise CheckpointError(f"`{dialect.config_file}` describes a model that cannot be built: {error}") from error


def shallow(architecture: Architecture, config: Any) -> tuple[Any, int]:
    """The configuration with one layer, and the number of layers of this kind in the model.

    For an architecture whose layers are not equal, they are the configuration itself and 1.
    """
    if architecture.layers is None or not architecture.equal_layers:
        return config, 1
    return dataclasses.replace(config, **{architecture.layers: 1}), getattr(config, architecture.layers)


def arrays_of(
    architecture: Architecture, dialect: Dialect, config: Any, dtype: DTypeLike
) -> dict[str, jax.ShapeDtypeStruct]:
    """Every array of the model by its path. Only one of several equal layers is built.

    **Arguments:**

    - `architecture`, `dialect`, `config`, `dtype`: as for `skeleton`.

    **Raises:** `CheckpointError` when the configuration describes no model.
    """
    one, layers = shallow(architecture, config)
    slots = jax.tree_util.tree_flatten_with_path(skeleton(architecture, dialect, one, dtype))[0]
    arrays = {array_path(path): slot for path, slot in slots if isinstance(slot, jax.ShapeDtypeStruct)}
    if layers == 1:
        return arrays
    indices = {int(index[0]) for path in arrays if (index := _INDEX.search(path))}
    return {
        place: slot
        for layer in range(layers)
        for path, slot in arrays.items()
        for place in _places(path, layer * len(indices))
    }


def parameter_count(architecture: Architecture, dialect: Dialect, config: Any, dtype: DTypeLike) -> int:
    """The number of a model's parameters. At most two of several equal layers are built.

    **Arguments:**

    - `architecture`, `dialect`, `config`, `dtype`: as for `skeleton`.

    **Raises:** `CheckpointError` when the configuration describes no model.
    """

    def count(config: Any) -> int:
        return sum(slot.size for slot in arrays_of(architecture, dialect, config, dtype).values())

    if architecture.layers is None or not architecture.equal_layers:
        return count(config)
    one, two = (count(dataclasses.replace(config, **{architecture.layers: layers})) for layers in (1, 2))
    return one + (getattr(config, architecture.layers) - 1) * (two - one)


def array_path(keys: tuple[Any, ...]) -> str:
    """The path of an array in a model as formats know it, such as `blocks.3.norm.weight`."""
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def cache_bytes(architecture: Architecture, dialect: Dialect, config: Any, dtype: DTypeLike) -> tuple[int, int]:
    """The number of bytes of one sequence's empty cache, and the number of bytes that each token adds.

    Only one of several equal layers is built.

    **Arguments:**

    - `architecture`, `dialect`, `config`, `dtype`: as for `skeleton`.

    **Raises:** `CheckpointError` when the configuration describes no model.
    """
    one, layers = shallow(architecture, config)
    model = skeleton(architecture, dialect, one, dtype)

    def nbytes(room: int) -> int:
        cache = jax.tree.leaves(_laid_out(dialect, lambda model: model.reserve(model.init_cache(), room), model))
        return layers * sum(leaf.size * leaf.dtype.itemsize for leaf in cache if isinstance(leaf, jax.ShapeDtypeStruct))

    return nbytes(0), nbytes(1) - nbytes(0)


def _places(path: str, offset: int) -> Iterator[str]:
    """The path of the array in a later layer. An array that belongs to no layer has a path the first time only."""
    moved = _INDEX.sub(lambda index: str(int(index[0]) + offset), path, count=1)
    if moved != path or offset == 0:
        yield moved
