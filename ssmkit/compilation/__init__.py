"""Compilation for TPU and GPU without such a device, and what the compilers tell."""

from ._compile import compile_for
from ._report import Compilation
from ._targets import DEVICES


__all__ = ["DEVICES", "Compilation", "compile_for"]
