"""Tables that cannot be changed, for configurations."""

from collections.abc import Mapping
from typing import Any, NoReturn


class Table(dict[str, Any]):
    """A dictionary that cannot be changed, so it is hashable. Its values must be hashable too."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(frozenset(self.items()))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a table of a configuration cannot be changed: make another configuration.")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # pyright: ignore


def frozen(value: Any) -> Any:
    """The value with lists as tuples and dictionaries as `Table`s, so that it is hashable if its entries are."""
    if isinstance(value, Mapping):
        return Table({name: frozen(entry) for name, entry in value.items()})
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value
