"""The limits of this machine alone; `decode` and `prefill` measure them between their own runs."""

from typing import Any

from ._ceilings import probes
from ._geometry import GEOMETRIES
from ._session import Settings, report
from ._timing import alternate


def measure(settings: Settings) -> dict[str, Any]:
    """Every form of every ceiling, for matrices of the geometry's size."""
    geometry = GEOMETRIES[settings.geometry]
    most = 256 if settings.geometry.startswith("tiny") else None
    runs, rates = probes(geometry.weight_bytes(), geometry.hidden_size, most)
    times = alternate(runs, settings.repeats)
    rows = [{"kind": kind, "form": form, "seconds": times[_, kind, form].seconds} for _, kind, form in runs]
    return report("ceilings", settings, rows, ceilings={"all": rates(times)})
