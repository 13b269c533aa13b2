"""Writing of models as artefacts."""

import contextlib
import importlib.metadata
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np
import safetensors.numpy

from .._arguments import check_model, path_of
from .._config import checks_itself
from .._files import replacing_folder
from .._language_model import AbstractLanguageModel
from .._types import shown, whole
from ..checkpoint import CheckpointError
from ..checkpoint._dialect import architectures_of
from ..checkpoint._layout import Layout
from ._audit import foreign_operations
from ._manifest import MANIFEST, WEIGHTS, File, Manifest, Spec
from ._programs import Parts, export_programs, take_apart


LENGTHS = (16, 128, 512)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@checks_itself
def save_exported(
    model: AbstractLanguageModel,
    directory: str | os.PathLike[str],
    *,
    platforms: Sequence[str] | None = None,
    weights: bool = True,
    lengths: Sequence[int] = LENGTHS,
    context: int | None = None,
    beside: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Write a model as an artefact that needs no Python code of the model: StableHLO, weights and a manifest.

    The folder is written beside its final place and then moved there; an artefact that is already there is replaced.

    **Arguments:**

    - `model`: any language model.
    - `directory`: a folder that does not exist, is empty, or holds an artefact.
    - `platforms`: some of `cpu`, `cuda`, `rocm` and `tpu`; this machine need not have them. `None` means the platform
        of this process.
    - `weights`: whether the weights are written too.
    - `lengths`: the numbers of tokens that programs take at a time. Prompts of any length are cut into pieces and
        padded.
    - `context`: the room of the cache, in tokens, for a model with attention over all earlier tokens. Outputs past the
        room are NaN. Other models need no `context`.
    - `beside`: files and folders to copy into the artefact, such as a `tokenizer.json`.

    **Raises:** `CheckpointError` when the folder holds something else, when the model has arrays that cannot be stored
    or a program with operations other than StableHLO, or when the package `flatbuffers` is missing; `OSError` naming
    the folder when it cannot be written, such as on a full disk.
    """
    from jax import export

    check_model(model)
    target = path_of("directory", directory).absolute()
    copied = [path_of("beside", path) for path in _listed("beside", beside)]
    chosen = [export.default_export_platform()] if platforms is None else _listed("platforms", platforms)
    platforms = [name for i, name in enumerate(chosen) if name not in chosen[:i]]
    sizes = [whole(length) or 0 for length in _listed("lengths", lengths)]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"`lengths` must be integers of at least 1, got {shown(lengths)}.")
    unknown = [platform for platform in platforms if platform not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(f"`platforms` must be some of {', '.join(PLATFORMS)}, got {shown(unknown or platforms)}.")
    require_flatbuffers()
    _check_replaceable(target)
    files = {name: file.read_bytes() for path in copied for name, file in _files(path)}
    room = _room(model, context)
    sizes = sorted(set(sizes))
    if room:
        sizes = [length for length in sizes if length <= room] or [room]
    parts = take_apart(model, room)
    with replacing_folder(target) as folder:
        _write(folder, model, parts, platforms, sizes, weights, files)


def _files(path: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """A file, or the files of a folder, with their names in the artefact."""
    files = sorted(filter(pathlib.Path.is_file, path.rglob("*"))) if path.is_dir() else [path]
    return [(file.relative_to(path.parent).as_posix(), file) for file in files]


def _listed(name: str, given: Any) -> list[Any]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ValueError(f"`{name}` must be a list, got {shown(given)}.")
    return list(given)


def _room(model: AbstractLanguageModel, context: Any) -> int:
    """The number of tokens for which the cache has room; 0 if it needs no room.

    **Raises:** `ValueError` when `context` is not a number of tokens, or is missing although the cache needs room.
    """
    room = whole(context)
    if context is not None and (room is None or room < 1):
        raise ValueError(f"`context` must be a number of tokens, at least 1, got {shown(context)}.")
    form = lambda tokens: eqx.filter_eval_shape(lambda: model.reserve(model.init_cache(), tokens))
    if eqx.tree_equal(form(0), form(1)):
        return 0
    if room is None:
        raise ValueError(
            f"`context` must say for how many tokens there is to be room: the cache of this {type(model).__name__} "
            "keeps tokens one by one, and the programs of an artefact have arrays of one size."
        )
    return room


def require_flatbuffers() -> None:
    """Check that `flatbuffers` is installed, with which `jax.export` stores programs.

    **Raises:** `CheckpointError` saying how to install it.
    """
    try:
        import flatbuffers  # noqa: F401
    except ModuleNotFoundError:
        raise CheckpointError(
            "Exported models are stored with the package flatbuffers: pip install flatbuffers."
        ) from None


def _check_replaceable(target: pathlib.Path) -> None:
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise CheckpointError(f"`{target}` is not empty and holds no exported model. Name another folder.")
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"`{target}` is a file. Name a folder.")


def _write(
    folder: pathlib.Path,
    model: Any,
    parts: Parts,
    platforms: Sequence[str],
    lengths: Sequence[int],
    weights: bool,
    beside: Mapping[str, bytes],
) -> None:
    programs: dict[str, dict[str, File]] = {}
    for platform in platforms:
        (folder / platform).mkdir()
        programs[platform] = {}
        for name, exported in export_programs(parts, lengths, platform):
            foreign = foreign_operations(exported.mlir_module())
            if foreign:
                raise CheckpointError(f"The model's `{name}` is more than StableHLO on {platform}.", foreign)
            content, path = bytes(exported.serialize()), f"{platform}/{name}.bin"
            (folder / path).write_bytes(content)
            programs[platform][name] = File.of(path, content)
    if weights:
        arrays = {name: np.asarray(leaf, order="C") for name, leaf in parts.weights.items()}
        safetensors.numpy.save_file(arrays, folder / WEIGHTS)
    for name, content in beside.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)
    manifest = Manifest(
        versions={name: _version(name) for name in ("ssmkit", "jax", "jaxlib")},
        vocab_size=parts.vocab_size,
        eos_token_id=model.stop_tokens,
        lengths=tuple(lengths),
        weights={name: Spec.of(leaf) for name, leaf in parts.weights.items()},
        cache=parts.cache,
        logits=parts.logits,
        programs=programs,
        layouts=_layouts(model, parts),
    )
    (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _layouts(model: Any, parts: Parts) -> dict[str, Layout]:
    """The sources of the weights in every checkpoint format of the model's architecture, if it is registered."""
    found = {}
    for dialect in [dialect for known in architectures_of(model) for dialect in known.dialects]:
        with contextlib.suppress(CheckpointError):  # arrays that no checkpoint has, such as scales of quantised weights
            found[dialect.name] = dialect.layout(model.config, parts.weights)
    return found
