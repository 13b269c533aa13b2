"""Loading of models, and of the files beside them, for the command line."""

import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._default_model import default_model_path
from ._console import without_panics


if TYPE_CHECKING:
    from jax.sharding import Mesh

    from ..text._tokenizer import Tokenizer


_CACHE_SETTING = "jax_compilation_cache_dir"


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk, so that a second start is quick. Call it before anything is computed.

    The folder is `xla` in `$SSMKIT_CACHE_DIR`, else in `$XDG_CACHE_HOME/ssmkit`, else in `~/.cache/ssmkit`. If the
    folder cannot be written, nothing is kept, without an error. A cache that is configured in JAX itself stays.
    """
    import jax

    if getattr(jax.config, _CACHE_SETTING):
        return
    try:
        root = os.environ.get("SSMKIT_CACHE_DIR") or Path(
            os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ssmkit"
        )
        folder = Path(root, "xla")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # no permission, no space, no home
        return
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
    jax.config.update(_CACHE_SETTING, str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def load_model(
    source: str | None, revision: str | None, dtype: str | None, quantize: str | None, mesh: "Mesh | None" = None
) -> Any:
    """Load the model of `--model` to run it: a checkpoint, an exported model, or the embedded model.

    **Arguments:**

    - `source`: the value of `--model`.
    - `revision`, `dtype`, `quantize`: the options of these names; `None` if they were not given. Without `dtype`,
        weights are float32.
    - `mesh`: the mesh on which the model is placed.

    **Raises:** `ValueError` for an exported model with any of these options: its programs fit its own weights only.
    """
    enable_compilation_cache()
    from ..checkpoint import from_pretrained
    from ..export import is_exported, load_exported
    from ..parallel import shard

    if source is not None and is_exported(source):
        options = {"--revision": revision, "--dtype": dtype, "--quantize": quantize}
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise ValueError(
                f"`{source}` is an exported model, whose weights stay as they are: leave out {' and '.join(given)}"
            )
        loaded = load_exported(source)
        return loaded if mesh is None else shard(loaded, mesh)
    source, wanted = or_embedded(source), "float32" if dtype is None else dtype
    return from_pretrained(source, wanted, quantize=quantize, revision=revision, mesh=mesh)


def load_checkpoint(source: str | None, revision: str | None, dtype: str | None) -> Any:
    """Load a checkpoint, or the embedded model, to write it in another form. `None` keeps the stored dtypes.

    **Raises:** `ValueError` for an exported model.
    """
    enable_compilation_cache()
    from ..checkpoint import from_pretrained
    from ..export import is_exported

    if source is not None and is_exported(source):
        raise ValueError(f"`{source}` is an exported model, and no checkpoint: name the checkpoint that it was made of")
    return from_pretrained(or_embedded(source), dtype, revision=revision)


def or_embedded(source: str | None) -> str:
    """The model of `--model`; the folder of the embedded model if none is named."""
    return os.fspath(default_model_path()) if source is None else source


def device_name(mesh: "Mesh | None" = None) -> str:
    """The device that JAX computes on, for statistics, and the axes of a mesh of them."""
    import jax

    from ..parallel._mesh import said

    device = jax.devices()[0]
    kind = device.device_kind
    name = kind if kind.lower() == device.platform else f"{kind} ({device.platform})"
    return name if mesh is None else f"{name}, {said(mesh.shape)}"


def load_tokenizer(
    source: str | None, revision: str | None, tokenizer: str | None, tokenizer_revision: str | None
) -> "Tokenizer":
    """Load the tokenizer of `--tokenizer`, or the one beside the model, of the model's revision.

    **Raises:** `FileNotFoundError` when there is no tokenizer, `ValueError` when it cannot be read.
    """
    from ..checkpoint import locate
    from ..text._tokenizer import Tokenizer

    if tokenizer is None and tokenizer_revision is not None:
        raise ValueError(
            "--tokenizer-revision needs --tokenizer; the model's own tokenizer is of the model's --revision"
        )
    with without_panics():
        if tokenizer is not None:
            return Tokenizer.from_file(tokenizer, revision=tokenizer_revision)
        place = locate(or_embedded(source), revision)
        try:
            return Tokenizer.from_file(place.repo_id or place.fetch(()), revision=place.revision)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no tokenizer.json beside `{source}`: put it there, as `save_pretrained(..., tokenizer=tokenizer)` "
                "does, or pass --tokenizer DIR, FILE or ID"
            ) from None


def encode(tokenizer: "Tokenizer", text: str, *, special: bool = True) -> list[int]:
    """The ids of a text.

    **Raises:** `ValueError` when the text cannot be encoded.
    """
    with without_panics():
        return tokenizer.encode(text, special=special)


def companions(source: str | None, revision: str | None) -> dict[str, Path]:
    """The files to copy along with a checkpoint, such as its tokenizer, fetched if necessary.

    **Arguments:**

    - `source`, `revision`: those of a loaded model: a folder, a file or a hub id; `None` for the embedded model.

    **Returns:** the files by their paths in the checkpoint's folder.

    **Raises:** `ValueError` when the hub is unreachable.
    """
    from ..checkpoint import locate
    from ..text._files import COMPANION_PATTERNS, COMPANIONS

    folder = locate(or_embedded(source), revision).fetch(COMPANIONS, patterns=COMPANION_PATTERNS)
    found = [folder / name for name in COMPANIONS]
    found += [path for pattern in COMPANION_PATTERNS for path in sorted(folder.glob(pattern))]
    return {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}
