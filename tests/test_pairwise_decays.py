"""Decays between the tokens of a chunk: relatively precise, entry by entry, with their gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import all_finite, jit, random_coefficients, relative_error
from kernel_runs import BOUND, decays_of_differences

from ssmkit import kernels
from ssmkit.kernels import _pairwise_decays


# Pairwise decays.


PAIRWISE = jit(kernels.pairwise_decays)


@pytest.fixture(params=["cpu", "tpu"])
def platform(request):
    """Decays are made in one way for a CPU and in another for accelerators; both run here."""
    with kernels.target(request.param):
        yield request.param


def exact_sums(x: np.ndarray) -> np.ndarray:
    """Every sum on its own, in float64; minus infinity above the diagonal."""
    chunk = x.shape[-1]
    x = x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)
    sums = np.full((*x.shape, chunk), -np.inf, x.dtype)
    for j in range(chunk):
        sums[..., j, j] = 0.0
        sums[..., j + 1 :, j] = np.cumsum(x[..., j + 1 :], axis=-1)
    return sums


def worst_decay(decays, sums) -> float:
    """The worst relative error of any single decay that float32 can hold, as a multiple of its exponent, if above 1.

    To round the exponent is to change the decay by as much times the exponent.
    """
    held = sums.real > -80.0
    expected = np.exp(sums[held])
    error = np.abs(np.asarray(decays)[held] - expected) / np.abs(expected)
    return float(np.max(error / np.maximum(np.abs(sums[held]), 1.0)))


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("cumulative", [-1e-3, -400.0, -20000.0])
@pytest.mark.parametrize("chunk", [1, 16, 17, 64, 100, 256, 300])
def test_pairwise_decays_are_relatively_precise_entry_by_entry(platform, chunk, cumulative, is_complex):
    """Every entry, not just a norm. On CPU, at most 22 float32 additions of one sign stand behind an exponent."""
    coefficients, _ = random_coefficients(
        9, time=chunk, heads=3, groups=1, key=1, value=1, cumulative=cumulative, chunk=chunk, is_complex=is_complex
    )
    x = coefficients.log_decay[..., 0].T
    sums = exact_sums(np.asarray(x))
    decays = PAIRWISE(x)
    assert decays.dtype == x.dtype and decays.shape == (3, chunk, chunk)
    upper = np.triu(np.ones((chunk, chunk), bool), 1)
    assert not np.asarray(decays)[:, upper].any()
    assert not np.asarray(decays)[sums.real < -104.0].any()  # less than half of what float32 can hold
    assert np.array_equal(np.diagonal(decays, axis1=-2, axis2=-1), np.ones((3, chunk)))
    if is_complex:  # angles of both signs add up to a hundred radians, which float32 holds to 4e-6
        assert relative_error(decays, np.exp(sums)) <= 4e-6
        return
    assert worst_decay(decays, sums) <= 1e-6
    if chunk > 16 and cumulative < -1:
        assert worst_decay(jit(decays_of_differences)(x), sums) > 1e-5


@pytest.mark.parametrize("chunk", [16, 50, 300])
def test_pairwise_decays_of_infinities(platform, chunk):
    """-inf is an ordinary value: it reaches the decays that contain it, and no other."""
    x = jnp.asarray(np.where(np.arange(chunk) % 7 == 3, -np.inf, -0.5), jnp.float32)
    np.testing.assert_allclose(PAIRWISE(x), np.exp(exact_sums(np.asarray(x))), rtol=1e-6)
    suffix = [np.asarray(x)[j + 1 :].sum() for j in range(chunk)]
    assert np.array_equal(jit(_pairwise_decays.suffix_sums)(x), np.asarray(suffix, np.float32))


@pytest.mark.parametrize("chunk", [1024, 1040])
def test_the_strongest_decays_leave_weak_ones_exact(platform, chunk):
    """Sums of fixed-point numbers have 24 bits in chunks of up to 1024 tokens; longer chunks are made of blocks."""
    x = jnp.full(chunk, -109.99, jnp.float32).at[-2:].set(-0.3)
    np.testing.assert_allclose(PAIRWISE(x)[-1, -3:], np.exp([-0.6, -0.3, 0.0]), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1000.0, math.inf])
@pytest.mark.parametrize("chunk", [16, 50, 300])
def test_gradients_of_pairwise_decays(platform, chunk, scale):
    """Finite at any decay, and those of the exponentials of the exact sums: a decay is its own derivative."""
    rng = np.random.default_rng(0)
    x = -rng.exponential(size=chunk) * (scale if math.isfinite(scale) else 1.0)
    x = jnp.asarray(np.where((np.arange(chunk) % 7 == 3) & math.isinf(scale), -np.inf, x), jnp.float32)
    weights = rng.normal(size=(chunk, chunk))
    got = jit(jax.grad(lambda x: jnp.sum(kernels.pairwise_decays(x) * weights.astype(np.float32))))(x)
    each = weights * np.exp(exact_sums(np.asarray(x)))
    # Token s is part of the decay from j to i for j < s <= i.
    expected = [each[s:, :s].sum() for s in range(chunk)]
    assert all_finite(got)
    assert relative_error(got, np.asarray(expected)) <= BOUND
