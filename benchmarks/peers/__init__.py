"""The measured subjects: ssmkit in its variants, and other software, each behind the same few methods.

A subject takes the float32 weights of a geometry, from the device or from files in HF's layout. It turns batches of
token ids, NumPy arrays `(batch, time)`, into logits and greedy tokens. To add one, write a module with a class that has
`Subject`'s methods and a line in `SUBJECTS`.
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .._checkpoint import Checkpoint
from .._environment import device
from .._geometry import GEOMETRIES


@runtime_checkable
class Subject(Protocol):
    """One loaded model. Every method returns when its result is in host memory."""

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """The logits after the last token of each row, `(batch, vocab)`, from an empty cache."""
        ...

    def begin(self, prompt: np.ndarray, new: int) -> Any:
        """Consume prompts and prepare for `new` tokens. The result is the argument of `decode`. It is not timed."""
        ...

    def decode(self, start: Any, new: int) -> np.ndarray:
        """The next `new` greedy tokens of each row, `(batch, new)`."""
        ...


def _needs(*packages: str) -> Callable[[], str | None]:
    """A function that names a missing package, if there is one."""

    def missing() -> str | None:
        absent = [package for package in packages if importlib.util.find_spec(package) is None]
        return f"not installed ({', '.join(absent)})" if absent else None

    return missing


def _cuda() -> str | None:
    if missing := _needs("mamba_ssm", "torch")():
        return missing
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


@dataclasses.dataclass(frozen=True)
class Entry:
    """The entry of a subject: how it is built, and the requirements on it."""

    label: str
    """The label of the subject in tables."""
    module: str
    """A module of this package, whose class `Model` is the subject."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of `Model` after the checkpoint."""
    storage: str = "float32"
    """The storage of its weight matrices: a key of `STORAGE`."""
    tolerance: float | None = None
    """The allowed distance of its logits from the reference, relative to the largest; `None`: tokens must be equal."""
    available: Callable[[], str | None] = lambda: None
    """Returns the reason why it cannot be measured here, or `None`."""
    platforms: tuple[str, ...] = ("cpu", "gpu")
    """The JAX platforms on which it is measured by default."""
    commands: tuple[str, ...] = ("prefill", "decode")
    """The commands that measure it."""
    only: str | None = None
    """The one `model_type` of HF's configurations that it has; `None` if it has those of all geometries."""
    most_batch: int = 1 << 30
    """The largest batch on a CPU; larger batches take too long."""
    patience: int = 1
    """The factor by which it decodes fewer tokens than others on a CPU; its time per token is constant too."""


_HF = _needs("torch", "transformers")
_M2J = _needs("mamba2_jax")
_LLAMA = _needs("llama_cpp", "gguf")
_NARROW = 0.05
# Rounding to 8 bits moves the products of a random matrix by about 0.4 % of their size. Through the 93 matrices of
# LFM2-350M, whose products are multiplied with each other, that grows to 9 % of the logits, ours and llama.cpp's alike.
_EIGHT_BITS = 0.12

SUBJECTS: dict[str, Entry] = {
    "ssmkit": Entry("ssmkit", "ours", {"weights": "float32"}, commands=("prefill", "decode", "uncached", "context")),
    "ssmkit-model": Entry(
        "ssmkit, `model.prefill`", "ours", {"weights": "float32", "engine": False}, commands=("prefill",)
    ),
    "ssmkit-bfloat16": Entry("ssmkit, bfloat16 weights", "ours", {"weights": "bfloat16"}, "bfloat16", _NARROW),
    "ssmkit-int8": Entry("ssmkit, int8 weights", "ours", {"weights": "int8"}, "int8", _EIGHT_BITS),
    "hf": Entry(
        "HF transformers, bare loop",
        "hf",
        available=_HF,
        platforms=("cpu",),
        commands=("prefill", "decode", "uncached"),
    ),
    "hf-generate": Entry(
        "HF transformers, `generate`, prompt included",
        "hf",
        {"bare": False},
        available=_HF,
        platforms=("cpu",),
        commands=("decode",),
    ),
    "hf-bfloat16": Entry(
        "HF transformers, bfloat16", "hf", {"weights": "bfloat16"}, "bfloat16", _NARROW, _HF, platforms=("gpu",)
    ),
    "mamba2-jax": Entry(
        "mamba2-jax, jitted step",
        "mamba2jax",
        available=_M2J,
        platforms=("cpu",),
        only="mamba2",
        most_batch=1,
        patience=8,
    ),
    "mamba2-jax-loop": Entry(
        "mamba2-jax, `fori_loop`",
        "mamba2jax",
        {"device_loop": True},
        available=_M2J,
        platforms=("cpu",),
        commands=("decode",),
        only="mamba2",
        most_batch=1,
        patience=8,
    ),
    "mamba2-jax-bfloat16": Entry(
        "mamba2-jax, bfloat16, `fori_loop`",
        "mamba2jax",
        {"device_loop": True, "weights": "bfloat16"},
        "bfloat16",
        _NARROW,
        _M2J,
        platforms=("gpu",),
        only="mamba2",
    ),
    "llama.cpp": Entry("llama.cpp, F32", "llamacpp", {"weights": "float32"}, "float32", 1e-3, _LLAMA, ("cpu",)),
    "llama.cpp-q8": Entry("llama.cpp, Q8_0", "llamacpp", {"weights": "q8_0"}, "q8_0", _EIGHT_BITS, _LLAMA, ("cpu",)),
    "mamba_ssm": Entry(
        "mamba_ssm, Triton, bfloat16", "mambassm", {}, "bfloat16", _NARROW, _cuda, ("gpu",), only="mamba2"
    ),
}


def reasons(names: list[str], geometry: str) -> dict[str, str]:
    """The reasons why some of these subjects cannot be measured here, at this geometry."""
    model_type = GEOMETRIES[geometry].config["model_type"]
    return {name: reason for name in names if (reason := _reason(SUBJECTS[name], model_type)) is not None}


def _reason(entry: Entry, model_type: str) -> str | None:
    if entry.only not in (None, model_type):
        return f"has no {model_type}"
    return entry.available()


def chosen(command: str, wanted: list[str] | None) -> list[str]:
    """The subjects of a command: those that were given, or those of this platform.

    **Raises:** `ValueError` for an unknown name.
    """
    if wanted is None:
        platform = "cpu" if device()["platform"] == "cpu" else "gpu"
        return [name for name, entry in SUBJECTS.items() if command in entry.commands and platform in entry.platforms]
    unknown = [name for name in wanted if name not in SUBJECTS]
    if unknown:
        raise ValueError(f"no subject is called {', '.join(unknown)}: there are {', '.join(SUBJECTS)}")
    return wanted


def load(name: str, checkpoint: Checkpoint) -> Subject:
    """Load a subject with its weights."""
    entry = SUBJECTS[name]
    return importlib.import_module(f"{__name__}.{entry.module}").Model(checkpoint, **entry.options)
