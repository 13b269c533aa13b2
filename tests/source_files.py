"""The files that the package is made of."""

from pathlib import Path

import pytest

import ssmkit
import ssmkit.benchmarks
import ssmkit.models


CORE = Path(ssmkit.__file__).parent
MODELS = Path(ssmkit.models.__file__).resolve().parent
BENCHMARKS = Path(ssmkit.benchmarks.__file__).resolve().parent  # they measure models
CORE_FILES = sorted(
    path for path in CORE.rglob("*.py") if not any(map(path.resolve().is_relative_to, (MODELS, BENCHMARKS)))
)
MODEL_FILES = sorted(MODELS.rglob("*.py"))
BENCHMARK_FILES = sorted(BENCHMARKS.rglob("*.py"))
TEST_FILES = sorted(Path(__file__).parent.glob("*.py"))


def named(paths: list[Path]):
    """Parametrize `path` with readable ids."""
    return pytest.mark.parametrize("path", [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in paths])
