"""The environment of a measurement: hardware and versions, without time or place."""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any


PACKAGES = (
    "jax",
    "jaxlib",
    "equinox",
    "numpy",
    "torch",
    "transformers",
    "flax",
    "mamba2-jax",
    "llama-cpp-python",
    "mamba-ssm",
    "triton",
)


def environment(*packages: str) -> dict[str, Any]:
    """The hardware, and the versions of Python and of these packages, if they are installed."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version for package in packages if (version := _version(package)) is not None},
    }


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device() -> dict[str, str]:
    """The accelerator that JAX computes on, or the CPU."""
    import jax

    first = jax.devices()[0]
    return {"platform": first.platform, "kind": first.device_kind}


def on_cpu() -> bool:
    """Whether JAX computes on the CPU."""
    return device()["platform"] == "cpu"


def cache_bytes() -> int:
    """The capacity of the device's caches, or 64 MiB if the system does not report it.

    64 MiB is more than the second-level caches of the GPUs in `_ceilings` (50 MB), which JAX does not report.
    """
    files = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size") if on_cpu() else ()
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    found = [path.read_text().strip() for path in files]
    sizes = [int(size[:-1]) * units[size[-1]] for size in found if size[:-1].isdecimal() and size[-1] in units]
    return max(sizes, default=64 << 20)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name, if the system reports it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
