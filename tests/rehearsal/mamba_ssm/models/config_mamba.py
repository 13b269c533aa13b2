"""The configuration of a stand-in."""

from types import SimpleNamespace as MambaConfig  # noqa: F401 the name that the package gives it
