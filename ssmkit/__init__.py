"""ssmkit: state-space models that are written once and run wherever XLA runs."""

import ast
import importlib
import importlib.util
import pathlib
from typing import Any

from . import _config


__version__ = "0.1.0"

if _config.typecheck_requested():
    _config.install_typechecker()

# Names are imported on first use (PEP 562), so that code without JAX does not wait for it. The names are written once,
# as imports in `__init__.pyi`, where type checkers and editors find them
# (https://scientific-python.org/specs/spec-0001).
_homes = {
    alias.name: node.module
    for node in ast.parse(pathlib.Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
_needs_an_extra = {"training": "optax"}

__all__ = sorted(_homes.keys() - _needs_an_extra)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name, or a subpackage, and keep it.

    **Raises:** `AttributeError` for any other name.
    """
    if name not in _homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _homes[name]
    module = importlib.import_module(f".{home or name}", __name__)
    value = globals()[name] = getattr(module, name) if home else module
    return value


def __dir__() -> list[str]:
    found = [name for name, package in _needs_an_extra.items() if importlib.util.find_spec(package) is not None]
    return [*__all__, *found, "__version__"]
