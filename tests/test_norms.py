"""Norms, and the residual stream that they stand in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import all_finite, jit, relative_error, trees_close
from layer_inputs import AXES, BOUND, normal, precise

import ssmkit


# Normalisation.


@AXES
def test_rms_norm(axes):
    norm = ssmkit.RMSNorm(6, eps=1e-3)
    x = normal(0, *axes, 6)
    weighted = jax.tree.map(lambda weight: normal(1, *weight.shape), norm)
    expected = precise(x) / np.sqrt(np.mean(precise(x) ** 2, axis=-1, keepdims=True) + 1e-3)
    run = jit(lambda norm, x: norm(x))
    assert relative_error(run(norm, x), expected) <= BOUND
    assert relative_error(run(weighted, x), precise(weighted.weight) * expected) <= BOUND


@AXES
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_gated_rms_norm(axes, groups):
    """Gate first; the mean is over the channels of a group."""
    norm = ssmkit.GatedRMSNorm(6, groups=groups, eps=1e-3)
    norm = jax.tree.map(lambda weight: normal(1, *weight.shape), norm)
    x, gate = normal(2, *axes, 6), normal(3, *axes, 6)
    gated = precise(x) * precise(gate) / (1.0 + np.exp(-precise(gate)))
    grouped = gated.reshape(*axes, groups, 6 // groups)
    normalised = grouped / np.sqrt(np.mean(grouped**2, axis=-1, keepdims=True) + 1e-3)
    y = jit(lambda x, gate: norm(x, gate))(x, gate)
    assert relative_error(y, precise(norm.weight) * normalised.reshape(gated.shape)) <= BOUND


@pytest.mark.parametrize("groups", [0, 4, -1])
def test_groups_must_divide_the_channels(groups):
    with pytest.raises(ValueError, match=rf"`groups` must divide the 6 channels, got {groups}\."):
        ssmkit.GatedRMSNorm(6, groups=groups)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_norms_compute_in_float32(dtype):
    """Squares of narrow features leave float16 above and below; and the norms' weights are never narrow."""
    for size in (300.0, 1e-4):
        x = jnp.asarray(size * np.asarray([1.0, -2.0, 3.0, 0.5]), dtype)
        norm = ssmkit.RMSNorm(4, eps=1e-12, dtype=dtype)
        assert norm.weight.dtype == norm(x).dtype == jnp.float32
        expected = precise(x) / np.sqrt(np.mean(precise(x) ** 2))
        assert relative_error(norm(x), expected) <= 1e-3 * (size < 1) + BOUND
        gated = ssmkit.GatedRMSNorm(4, eps=1e-12, dtype=dtype)
        assert gated.weight.dtype == gated(x, jnp.ones_like(x)).dtype == jnp.float32
        assert relative_error(gated(x, jnp.ones_like(x)), expected) <= 1e-3 * (size < 1) + BOUND


def test_a_norm_of_zeros_is_zero_and_has_gradients():
    zeros = jnp.zeros((2, 4), jnp.float32)
    norms = {
        "plain": lambda x: ssmkit.RMSNorm(4)(x),
        "gated": lambda x: ssmkit.GatedRMSNorm(4, groups=2)(x, x),
    }
    for name, norm in norms.items():
        gradient = jit(jax.grad(lambda x: jnp.sum(norm(x))))(zeros)  # noqa: B023
        assert not np.any(norm(zeros)), name
        assert all_finite(gradient), name


# The residual block.


class Doubling(ssmkit.AbstractMixer[tuple]):
    """A mixer without memory."""

    def init_cache(self):
        return ()

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        return 2.0 * x, cache

    def step(self, x, cache, *, valid=None):
        return 2.0 * x, cache


def test_residual_block():
    block = ssmkit.ResidualBlock(ssmkit.RMSNorm(4, eps=0.0), Doubling())
    x = normal(0, 3, 4)
    expected = precise(x) + 2.0 * precise(x) / np.sqrt(np.mean(precise(x) ** 2, axis=-1, keepdims=True))
    y, _ = block.prefill(x, block.init_cache())
    assert relative_error(y, expected) <= BOUND
    assert trees_close(block.step(x[1], ())[0], y[1], BOUND)


@pytest.mark.parametrize("in_fp32, expected", [(True, jnp.float32), (False, jnp.bfloat16)], ids=["float32", "own"])
def test_precision_of_the_residual_stream(in_fp32, expected):
    block = ssmkit.ResidualBlock(ssmkit.RMSNorm(4), Doubling(), residual_in_fp32=in_fp32)
    x = normal(0, 3, 4, dtype=jnp.bfloat16)
    y, _ = block.prefill(x, ())
    assert y.dtype == expected
    precise_y, _ = block.prefill(x.astype(jnp.float32), ())
    assert relative_error(y, precise_y) <= (BOUND if in_fp32 else 2**-8)
