"""The memory that this process, or its accelerator, has used."""

import pathlib
import resource
import sys


_STATUS = pathlib.Path("/proc/self/status")
_RESET = pathlib.Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Reset `peak_bytes` to the current resident memory, if the system supports it (Linux)."""
    try:
        _RESET.write_text("5")
    except OSError:
        pass


def peak_bytes() -> int:
    """The largest resident memory so far, mapped files included."""
    return _field("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def resident_bytes() -> int:
    """The current resident memory."""
    return _field("VmRSS") or peak_bytes()


def device_bytes() -> dict[str, int]:
    """The current and the largest memory use of the accelerator; empty on a CPU."""
    import jax

    statistics = jax.devices()[0].memory_stats() or {}
    return {name: int(statistics[name]) for name in ("bytes_in_use", "peak_bytes_in_use") if name in statistics}


def _field(name: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":")), 0)
