"""The location of a checkpoint: on this machine, or on the Hugging Face hub."""

import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from .._config import checks_itself
from ._errors import CheckpointError


_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_LONGEST_HUB_ID = 96  # the hub's own bound


@dataclasses.dataclass(frozen=True)
class Place:
    """A local folder, a local file with others beside it, or a model on the Hugging Face hub."""

    path: pathlib.Path | None
    """The local folder or file; `None` for the hub."""
    repo_id: str = ""
    """The id of the model on the hub."""
    revision: str | None = None
    """The branch, tag or commit of the model on the hub; `None` for its main branch."""

    def fetch(self, names: Iterable[str], *, patterns: Iterable[str] = ()) -> pathlib.Path:
        """Fetch these files, as far as they exist, into one folder.

        **Arguments:**

        - `names`: names of files, without folders.
        - `patterns`: patterns of further files, such as `folder/*.jinja`.

        **Returns:** the local folder, or a snapshot in the cache of `huggingface_hub`. Cached files need no network.

        **Raises:** `CheckpointError` when the hub is unreachable, or does not know the model or the revision.
        """
        if self.path is not None:
            return self.path if self.path.is_dir() else self.path.parent
        import huggingface_hub

        version: dict[str, Any] = {} if self.revision is None else {"revision": self.revision}
        wanted = [*map(glob.escape, names), *patterns]
        try:
            return pathlib.Path(huggingface_hub.snapshot_download(self.repo_id, allow_patterns=wanted, **version))
        except Exception as error:  # of its HTTP client, of the hub, of the cache
            at = "" if self.revision is None else f" at revision `{self.revision}`"
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"`{self.repo_id}` is no local path, and could not be fetched from the hub{at} "
                f"({type(error).__name__}: {reason}). Check the id and the connection, or pass a local folder."
            ) from error

    def names(self) -> list[str]:
        """The names of all files, for messages; none if the hub does not list them."""
        if self.path is not None:
            return [path.name for path in self.fetch([]).iterdir()]
        import huggingface_hub

        try:
            return huggingface_hub.list_repo_files(self.repo_id, revision=self.revision)
        except Exception:  # as in `fetch`
            return []

    def file(self, name: str) -> pathlib.Path | None:
        """Fetch one file if necessary.

        **Arguments:**

        - `name`: the name of the file, without a folder.

        **Returns:** the path of the file, or `None` when there is no file of this name.

        **Raises:** `CheckpointError`, as `fetch`.
        """
        path = self.fetch([name]) / name
        return path if path.is_file() else None


@checks_itself
def locate(source: str | os.PathLike[str], revision: str | None = None) -> Place:
    """Find the checkpoint that a user named. Nothing is fetched yet.

    **Arguments:**

    - `source`: a folder, a file, or the id of a model on the Hugging Face hub. A path that exists takes precedence.
    - `revision`: a branch, tag or commit of a model on the hub; `None` for its main branch.

    **Returns:** a `Place`.

    **Raises:** `CheckpointError` when `source` is none of these three, or is local although a `revision` was given.
    """
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"`source` must be a path or the id of a model on the Hugging Face hub, got {source!r}.")
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise CheckpointError(f"`revision` must name a branch, tag or commit, got {revision!r}.")
    path = pathlib.Path(os.fsdecode(source))
    try:
        local = bool(os.fspath(source)) and (path.is_dir() or path.is_file())
    except OSError:  # no path of this machine, such as one that is too long
        local = False
    if local:
        if revision is not None:
            raise CheckpointError(
                f"`revision` names a version of a model on the hub, got {revision!r}, but `{path}` is a local path. "
                "Leave it out."
            )
        return Place(path)
    if isinstance(source, str) and len(source) <= _LONGEST_HUB_ID and _HUB_ID.fullmatch(source):
        return Place(None, source, revision)
    shown = str(path) if len(str(path)) <= 2 * _LONGEST_HUB_ID else f"{str(path)[:_LONGEST_HUB_ID]}..."
    raise CheckpointError(f"`{shown}` is neither a folder, a file nor the id of a model on the Hugging Face hub.")
