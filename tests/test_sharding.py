"""Batches spread over the devices of a mesh with explicit axes, which is what `jax.make_mesh` makes from jax 0.12 on.

Run as a program it computes; the test runs it with four virtual devices, which JAX must know of before it starts.
"""

import os
import pathlib
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ssmkit
from ssmkit.models import GLAMixer


DEVICES = 4


def test_a_batch_spread_over_devices():
    flags = f"--xla_force_host_platform_device_count={DEVICES} {os.environ.get('XLA_FLAGS', '')}"
    done = subprocess.run(
        [sys.executable, pathlib.Path(__file__).resolve()],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["training", "generating", "recurrence"]


def equal(got, expected) -> None:
    """To rounding: XLA's products of other shapes add in another order."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=1e-6)


def mixed() -> ssmkit.AbstractLanguageModel:
    keys = jax.random.split(jax.random.key(1), 3)
    mixers = [GLAMixer(16, num_heads=2, key=keys[0]), ssmkit.GatedMLP(16, 24, key=keys[1])]
    return ssmkit.LanguageModel(29, 16, mixers, key=keys[2])


def loss_of(model, tokens):
    logits = jax.vmap(model)(tokens[:, :-1])
    return jnp.mean(jax.vmap(ssmkit.cross_entropy)(logits, tokens[:, 1:]))


def steps_of(model, tokens):
    cache = jax.vmap(lambda row: model.prefill(row, model.init_cache(), length=5))(tokens)[1]
    return jax.vmap(model.step)(tokens[:, 0], cache)


class Decay(ssmkit.DiagonalChunkedRecurrence):
    state_shape: tuple[int, int, int] = eqx.field(static=True, default=(2, 3, 3))

    def coefficients(self, x):
        return ssmkit.Coefficients(jax.nn.log_sigmoid(x[:, 3:]), x[:, :3], x[:, :3], x[:, :3])


def main() -> None:
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Explicit,))
    replicated, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    place = lambda tree: jax.tree.map(lambda x: jax.device_put(x, replicated) if eqx.is_array(x) else x, tree)  # noqa: E731
    rows = np.random.default_rng(0).integers(0, 29, (2 * DEVICES, 13)).astype(np.int32)
    alone, spread, tokens = mixed(), place(mixed()), jax.device_put(rows, by_row)
    for run in (eqx.filter_value_and_grad(loss_of), steps_of):
        got = eqx.filter_jit(run)(spread, tokens)
        equal(got, eqx.filter_jit(run)(alone, rows))
    for leaf in jax.tree.leaves(got):  # a row stays where it was
        assert leaf.sharding.spec[0] == "data", leaf.sharding
    with jax.set_mesh(mesh):
        eqx.filter_jit(loss_of)(spread, tokens)
    print("training")
    out = ssmkit.generate(spread, tokens, 4)
    equal(out.tokens, ssmkit.generate(alone, rows, 4).tokens)
    print("generating")
    x = jax.device_put(np.random.default_rng(0).normal(size=(DEVICES, 7, 2, 4)).astype(np.float32), by_row)
    scan = lambda x: Decay().chunk_scan(x, Decay().init_state())  # noqa: E731
    equal(jax.jit(jax.vmap(scan))(x), jax.vmap(scan)(np.asarray(x)))
    print("recurrence")


if __name__ == "__main__":
    main()
