"""What the tests of the benchmarks share."""

import pathlib

import jax
import pytest
from typer.testing import CliRunner

from ssmkit.benchmarks import (
    _cli,
    _timing,
)


ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def as_users_run_it():
    """With JAX's default settings, unlike other tests."""
    defaults = {"jax_enable_x64": False, "jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}
    before = {name: getattr(jax.config, name) for name in defaults}
    settle, _timing.SETTLE = _timing.SETTLE, 0.0
    for name, value in defaults.items():
        jax.config.update(name, value)
    yield
    _timing.SETTLE = settle
    for name, value in before.items():
        jax.config.update(name, value)


def invoke(*words):
    done = CliRunner().invoke(_cli.app, [str(word) for word in words])
    return done.exit_code, done.output, done.exception
