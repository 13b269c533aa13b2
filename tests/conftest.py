"""Strict settings for every test: shapes and types checked at run time, no silent promotion of dtypes or ranks."""

import os


os.environ.setdefault("SSMKIT_TYPECHECK", "1")  # read when ssmkit is imported

import hypothesis
import jax
import pytest
from command_line import checkpoint, own_cache, run, text_file  # noqa: F401 fixtures
from exported_models import artefact, artefact_copy, exported_source  # noqa: F401 fixtures
from generating import case, model, quick_compilation  # noqa: F401


jax.config.update("jax_enable_x64", True)  # for float64 references; the package itself asks for float32 by name
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Properties are tried on the same examples in every run; `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=15)
hypothesis.settings.register_profile("search", deadline=None, max_examples=300)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def _forget_executables():
    """No module uses another's, and all together they would take several GiB."""
    yield
    jax.clear_caches()
