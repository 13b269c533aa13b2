"""Batches spread over a mesh with explicit axes, which is what `jax.make_mesh` makes from jax 0.12 on."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ssmkit
from ssmkit.models import GLAMixer


DEVICES = 4


def equal(got, expected) -> None:
    """To rounding: XLA's products of other shapes add in another order."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=1e-6)


def mixed() -> ssmkit.AbstractLanguageModel:
    keys = jax.random.split(jax.random.key(1), 3)
    mixers = [GLAMixer(16, num_heads=2, key=keys[0]), ssmkit.GatedMLP(16, intermediate_size=24, key=keys[1])]
    return ssmkit.LanguageModel(29, 16, mixers, key=keys[2])


def loss_of(model, tokens):
    logits = jax.vmap(model)(tokens[:, :-1])
    return jnp.mean(jax.vmap(ssmkit.cross_entropy)(logits, tokens[:, 1:]))


def steps_of(model, tokens):
    cache = jax.vmap(lambda row: model.prefill(row, model.init_cache(), ssmkit.Extent(length=5)))(tokens)[1]
    return jax.vmap(model.step)(tokens[:, 0], cache)


class Decay(ssmkit.DiagonalChunkedRecurrence):
    state_shape: tuple[int, int, int] = eqx.field(static=True, default=(2, 3, 3))

    def coefficients(self, x):
        return ssmkit.Coefficients(jax.nn.log_sigmoid(x[:, 3:]), x[:, :3], x[:, :3], x[:, :3])


class Own(ssmkit.AbstractLanguageModel):
    """A user's model, which defines its own methods."""

    embedding: ssmkit.Embedding
    head: ssmkit.Linear
    vocab_size: int = eqx.field(static=True, default=29)

    def init_cache(self):
        return jnp.zeros(8, jnp.float32)

    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        sums = jnp.cumsum(self.embedding(tokens), 0) + cache[None]
        return self.head(sums), sums[-1]

    def prefill(self, tokens, cache, extent=ssmkit.Extent()):
        sums = jnp.cumsum(self.embedding(tokens), 0) + cache[None]
        last = sums[(tokens.shape[0] if extent.length is None else extent.length) - 1]
        return self.head(last), last

    def step(self, token, cache, valid=None):
        last = self.embedding(token) + cache
        return self.head(last), last if valid is None else jnp.where(valid, last, cache)


def test_a_batch_spread_over_devices():
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:DEVICES])
    replicated, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    place = lambda tree: jax.tree.map(lambda x: jax.device_put(x, replicated) if eqx.is_array(x) else x, tree)
    rows = np.random.default_rng(0).integers(0, 29, (2 * DEVICES, 13)).astype(np.int32)
    alone, spread, tokens = mixed(), place(mixed()), jax.device_put(rows, by_row)
    for run in (eqx.filter_value_and_grad(loss_of), steps_of):
        got = eqx.filter_jit(run)(spread, tokens)
        equal(got, eqx.filter_jit(run)(alone, rows))
    for leaf in jax.tree.leaves(got):  # a row stays where it was
        assert leaf.sharding.spec[0] == "data", leaf.sharding
    with jax.set_mesh(mesh):
        eqx.filter_jit(loss_of)(spread, tokens)
    out = ssmkit.generate(spread, tokens, 4)
    equal(out.tokens, ssmkit.generate(alone, rows, 4).tokens)
    x = jax.device_put(np.random.default_rng(0).normal(size=(DEVICES, 7, 2, 4)).astype(np.float32), by_row)
    scan = lambda x: Decay().chunk_scan(x, Decay().init_state())
    equal(jax.jit(jax.vmap(scan))(x), jax.vmap(scan)(np.asarray(x)))
    gates = lambda x: ssmkit.Gates(x[..., 0], x[..., 1])
    for operator, prepare in (
        (ssmkit.CausalConv1d(4, 3, key=jax.random.key(0)), lambda x: x[..., 0, :]),
        (ssmkit.Shift((2, 4)), lambda x: x),
        (ssmkit.RunningPhase((2, 4)), lambda x: x),
        (ssmkit.Stabiliser(2), gates),
    ):
        scan = lambda x, f=prepare, o=operator: o.step(f(x[0]), o.chunk_scan(f(x), o.init_state())[1])
        equal(jax.jit(jax.vmap(scan))(x), jax.vmap(scan)(np.asarray(x)))
    alone = Own(ssmkit.Embedding(29, 8, key=jax.random.key(0)), ssmkit.Linear(8, 29, key=jax.random.key(1)))
    spread = place(alone)
    for run in (eqx.filter_value_and_grad(loss_of), steps_of):
        equal(eqx.filter_jit(run)(spread, tokens), eqx.filter_jit(run)(alone, rows))
    equal(ssmkit.generate(spread, tokens, 4).tokens, ssmkit.generate(alone, rows, 4).tokens)
