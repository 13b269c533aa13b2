"""Compilation for TPU and GPU without such a device, and what the compilers tell."""

from ._compile import compile_for as compile_for
from ._report import Compilation as Compilation
from ._sources import abstract_model as abstract_model
from ._targets import DEVICES as DEVICES
