"""Packages that are installed for the length of a test, with entry points as a user's would have."""

import importlib
import sys
import types

import pytest

from ssmkit import _plugins


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(group, name, value)`: a distribution whose entry point of this group and name is the value."""
    folder = tmp_path / "installed"
    module = types.ModuleType("module_of_a_plugin")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    _plugins._entry_points.cache_clear()
    lines = {}

    def install(group, name, value=None):
        setattr(module, name, value)
        lines.setdefault(group, []).append(f"{name} = {module.__name__}{'' if value is None else f':{name}'}")
        metadata = folder / "plugin-1.0.dist-info"
        metadata.mkdir(parents=True, exist_ok=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
        text = "\n".join(f"[{group}]\n" + "\n".join(entries) for group, entries in lines.items())
        (metadata / "entry_points.txt").write_text(text + "\n")
        importlib.invalidate_caches()
        _plugins._entry_points.cache_clear()

    yield install
    _plugins._entry_points.cache_clear()
