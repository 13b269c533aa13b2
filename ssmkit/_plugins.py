"""Tables of objects by name: ssmkit's own objects, and those that installed packages add."""

import dataclasses
import functools
import importlib.metadata
import pkgutil
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Named:
    """A table of objects. An object is imported when it is first requested.

    An installed package adds its own with an entry point of this group
    (https://packaging.python.org/en/latest/specifications/entry-points). It cannot use ssmkit's own names.
    """

    group: str
    """The group of the entry points, such as `ssmkit.mixers`."""
    parts: Mapping[str, str]
    """The place of each of ssmkit's own objects, as `package.module:name`."""
    models: str | None = None
    """The place of a table like `parts`, with the objects of `ssmkit.models`."""

    @property
    def built_in(self) -> Mapping[str, str]:
        """The place of each object of ssmkit and of its models."""
        return self.parts if self.models is None else {**pkgutil.resolve_name(self.models), **self.parts}

    def __getitem__(self, name: str) -> Any:
        """The object of that name.

        **Raises:** `KeyError` when there is no such object, and any exception of its import.
        """
        if name in self.built_in:
            return pkgutil.resolve_name(self.built_in[name])
        return self._installed()[name].load()

    def __contains__(self, name: object) -> bool:
        """Whether there is an object of that name."""
        return name in self.built_in or name in self._installed()

    def added(self) -> list[str]:
        """The names that installed packages add."""
        return [name for name in self._installed() if name not in self.built_in]

    def names(self) -> list[str]:
        """All names, with ssmkit's own names first."""
        return [*self.built_in, *self.added()]

    def _installed(self) -> dict[str, importlib.metadata.EntryPoint]:
        return _entry_points(self.group)


@functools.cache
def _entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of a group, by name. The next process sees packages that are installed later."""
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}
