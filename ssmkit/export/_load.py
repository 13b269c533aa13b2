"""Loading of models from artefacts."""

import hashlib
import os
import pathlib
from typing import Any

import jax

from .._config import checks_itself
from .._reading import read_regular
from ..checkpoint import CheckpointError, Source, open_tensors, shown
from ..checkpoint._layout import Layout, fit, load
from ._inspection import inspect_programs
from ._manifest import MANIFEST, WEIGHTS, File, Manifest, read_manifest
from ._model import ExportedModel, Programs
from ._programs import BATCH, results, signature
from ._save import require_flatbuffers


_LARGEST_PROGRAM = 256 << 20  # bytes; weights are no part of a program


@checks_itself
def is_exported(source: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that holds an exported model."""
    return isinstance(source, str | os.PathLike) and os.path.isfile(os.path.join(os.fsdecode(source), MANIFEST))


@checks_itself
def load_exported(directory: str | os.PathLike[str], *, weights: str | os.PathLike[str] | None = None) -> ExportedModel:
    """Load an artefact that `save_exported` wrote, for the platform of this process.

    Every file is checked before anything is compiled. Programs must match the manifest and consist of StableHLO only.
    Weights must have the right names, dtypes and shapes.

    **Arguments:**

    - `directory`: the artefact.
    - `weights`: a file or folder with the weights, if they are not in the artefact, or with other weights of the same
        geometry. It may be another artefact, or a checkpoint in any format of the model.

    **Returns:** a model for inference.

    **Raises:** `CheckpointError` listing all problems.
    """
    from jax import export

    require_flatbuffers()
    for name, path in (("directory", directory), ("weights", weights)):
        if not isinstance(path, str | os.PathLike) and not (name == "weights" and path is None):
            raise CheckpointError(f"`{name}` must be a path, got {shown(path)}.")
    folder = pathlib.Path(directory)
    manifest = read_manifest(folder)
    platform = export.default_export_platform()
    if platform not in manifest.programs:
        raise CheckpointError(
            f"`{folder}` holds programs for {', '.join(sorted(manifest.programs)) or 'no platform'}, and this process "
            f"runs on {platform}. Export the model for it too."
        )
    programs = _read_programs(folder, manifest, platform)
    arrays = _read_weights(manifest, folder / WEIGHTS if weights is None else pathlib.Path(weights))
    return ExportedModel(
        vocab_size=manifest.vocab_size, weights=arrays, programs=Programs(manifest, platform, programs)
    )


def _read_programs(folder: pathlib.Path, manifest: Manifest, platform: str) -> dict[str, Any]:
    """Read and check every program."""
    methods = [f"{method}_{length}" for length in manifest.lengths for method in ("prefill", "forward")]
    names = ["init", *(name + end for name in ("step", *methods) for end in ("", BATCH))]
    files = manifest.programs[platform]
    problems = [f"`{name}`: missing in `{MANIFEST}`" for name in names if name not in files]
    contents: dict[str, bytes] = {}
    for name in names:
        if name in files:
            try:
                contents[name] = _content(folder, files[name])
            except CheckpointError as error:
                problems.append(f"`{files[name].path}`: {error}")
    unusable = inspect_programs(contents)
    problems += [f"`{files[name].path}`: {reason}" for name, reason in unusable.items()]
    programs: dict[str, Any] = {}
    for name in [name for name in contents if name not in unusable]:
        try:
            programs[name] = _read_program(contents[name], name, manifest, platform)
        except CheckpointError as error:
            problems.append(f"`{files[name].path}`: {error}")
    if problems:
        made = f"made with JAX {manifest.versions.get('jax', 'unknown')}, read with {jax.__version__}"
        raise CheckpointError(f"The programs of `{folder}` ({made}) cannot be used. Export the model again.", problems)
    return programs


def _content(folder: pathlib.Path, file: File) -> bytes:
    """Read a file and check it against the manifest; the message of an error is the bare reason."""
    try:
        content = read_regular(folder / file.path, _LARGEST_PROGRAM)
    except OSError as error:
        raise CheckpointError(error.strerror or str(error)) from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise CheckpointError("damaged: its SHA-256 is not what the manifest says")
    return content


def _read_program(content: bytes, name: str, manifest: Manifest, platform: str) -> Any:
    """Read one program that has been inspected; the message of an error is the bare reason."""
    from jax import export

    try:
        exported = export.deserialize(bytearray(content))
    except Exception as error:  # as in the other process
        raise CheckpointError(f"not readable by this JAX ({type(error).__name__}: {error})") from error
    low, high = export.minimum_supported_calling_convention_version, export.maximum_supported_calling_convention_version
    if not low <= exported.calling_convention_version <= high:
        version = exported.calling_convention_version
        raise CheckpointError(f"of calling convention {version}, and this JAX supports {low} to {high}")
    if exported.platforms != (platform,) or exported.nr_devices != 1:
        raise CheckpointError(f"for {exported.platforms} on {exported.nr_devices} devices, expected one {platform}")
    if exported.ordered_effects or exported.unordered_effects or exported.disabled_safety_checks:
        raise CheckpointError("has side effects, or safety checks switched off")
    method, many = name.removesuffix(BATCH), name.endswith(BATCH)
    (batch,) = export.symbolic_shape("batch") if many else (None,)
    arguments = signature(method, manifest.weights, manifest.cache, batch), {}
    outcome = results(method, manifest.vocab_size, manifest.logits, manifest.cache, batch)
    for what, tree, avals, expected in (
        ("arguments", exported.in_tree, exported.in_avals, arguments),
        ("results", exported.out_tree, exported.out_avals, outcome),
    ):
        if tree != jax.tree.structure(expected) or not _fit(avals, jax.tree.leaves(expected)):
            raise CheckpointError(f"its {what} are not what the manifest says")
    return exported


def _fit(avals: Any, expected: list[jax.ShapeDtypeStruct]) -> bool:
    """Whether dtypes and shapes are equal. A symbolic size in `expected` equals any symbolic size."""
    from jax import export

    def fits(aval: Any, struct: Any) -> bool:
        sizes = list(zip(aval.shape, struct.shape, strict=True)) if len(aval.shape) == len(struct.shape) else [(0, 1)]
        both = lambda a, b: export.is_symbolic_dim(a) if export.is_symbolic_dim(b) else a == b
        return aval.dtype == struct.dtype and all(both(a, b) for a, b in sizes)

    return len(avals) == len(expected) and all(map(fits, avals, expected))


def _read_weights(manifest: Manifest, source: pathlib.Path) -> dict[str, jax.Array]:
    """Read the weights, in any layout of the source."""
    own = Layout(files=(WEIGHTS,), sources={name: Source(name) for name in manifest.weights}, spellings={}, copies={})
    arrays = {name: jax.ShapeDtypeStruct(spec.shape, spec.numpy_dtype) for name, spec in manifest.weights.items()}
    layouts = {"exported": own, **manifest.layouts}
    if not os.path.exists(source):
        raise CheckpointError(
            f"There are no weights at `{source}`. Pass `weights=` with a checkpoint, or put them there."
        )
    if not manifest.weights:
        return {}
    attempts = []
    for name, layout in layouts.items():
        files = [source / file for file in layout.files] if source.is_dir() else [source]
        for file in filter(pathlib.Path.is_file, files):
            tensors, problems = fit(layout, arrays, open_tensors(file))
            if not problems:
                return {weight: load(layout.sources[weight], tensors, array) for weight, array in arrays.items()}
            attempts.append(
                (len(problems), f"The weights in `{file}` do not fit the programs ({name} format).", problems)
            )
    if not attempts:
        expected = dict.fromkeys(file for layout in layouts.values() for file in layout.files)
        raise CheckpointError(f"`{source}` holds no weights: expected one of {', '.join(expected)}.")
    _, summary, problems = min(attempts)
    raise CheckpointError(summary, problems)
