"""Training over meshes: as on one device, and with the exchanges that are meant."""

import collections
import dataclasses
import re

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from small_training import CONFIG, Bigram, assert_same, dying, ignore

import ssmkit
from ssmkit.models import GLAMixer, Mamba2Mixer
from ssmkit.parallel import AXES, make_mesh, mesh_of
from ssmkit.training import fit
from ssmkit.training._data import Windows
from ssmkit.training._layout import batch_on, in_force, mesh_for, place_of, start, start_on
from ssmkit.training._optimizer import make_optimizer
from ssmkit.training._state import read_state
from ssmkit.training._update import update_of


IDS = np.tile(np.arange(64, dtype=np.int32), 20)
RUN = dataclasses.replace(CONFIG, batch_size=8, context=16, dropout=0.0, warmup_steps=0, learning_rate=1e-2)


def mixed():
    """Equal layers, which one loop runs, and others."""
    keys = jax.random.split(jax.random.key(1), 5)
    pair = lambda a, b: [GLAMixer(32, num_heads=4, key=a), ssmkit.GatedMLP(32, intermediate_size=64, key=b)]
    mixers = [*pair(*keys[:2]), *pair(*keys[2:4])]
    return ssmkit.scan_layers(ssmkit.LanguageModel(64, 32, mixers, key=keys[4]))


def stepped(model, mesh, config):
    """The loss of a step, the state after it, and the compiled program."""
    optimizer = make_optimizer(config)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    mesh = mesh_for(mesh, model, config)
    if mesh is None:
        state = start(params, optimizer)
    else:
        where = place_of(
            jax.eval_shape(lambda params: start(params, optimizer), params), mesh, fully_sharded=config.fully_sharded
        )
        state = start_on(params, optimizer, where)
    batch = batch_on(Windows(IDS, batch_size=config.batch_size, context=config.context, seed=0), 0, mesh)
    with in_force(mesh):
        program = jax.jit(update_of(config, optimizer, static, mesh)).lower(batch, state).compile()
        return *program(batch, state), program


@pytest.fixture(scope="module")
def alone():
    return stepped(mixed(), None, RUN)


def gradients(state):
    """Those of the first step, up to a factor: AdamW's first moment."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.optimizer[1][0].mu)]


def exchanges(program):
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return collections.Counter(re.findall(rf"= (?:\(.*?\)|\S+) ({kinds})(?:-start)?\(", program.as_text()))


def bytes_of(state, device):
    shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


@pytest.mark.parametrize("sizes, fully_sharded", [((8, 1, 1), False), ((2, 4, 1), True), ((1, 2, 4), False)])
def test_a_step_over_a_mesh_is_that_of_one_device(alone, sizes, fully_sharded):
    mesh = Mesh(np.array(jax.devices()).reshape(sizes), AXES, axis_types=(AxisType.Explicit,) * 3)
    loss, state, program = stepped(mixed(), mesh, dataclasses.replace(RUN, fully_sharded=fully_sharded))
    assert_close(loss, state, alone)
    if sizes == (8, 1, 1):  # the loss and all gradients in one sum
        assert exchanges(program) == {"all-reduce": 1}


def test_a_fully_sharded_step(alone):
    """Matrices lie on one device each in part; blocks are gathered twice, and their gradients scattered."""
    mesh = make_mesh(data=8)
    loss, state, program = stepped(mixed(), mesh, dataclasses.replace(RUN, fully_sharded=True))
    assert_close(loss, state, alone)
    found, matrices = exchanges(program), sum(jax.tree.leaves(ssmkit.matrix_mask(state.model)))
    assert found["reduce-scatter"] == matrices and matrices < found["all-gather"] <= 2 * matrices
    # Of the sums, one is of all gradients of vectors, and one of the gradient's norm.
    assert found["all-reduce"] <= 2 and not found.keys() - {"reduce-scatter", "all-gather", "all-reduce"}
    mean = state.optimizer[1][0].mu
    assert mean.embedding.weight.sharding.spec == state.model.embedding.weight.sharding.spec != PartitionSpec()
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert bytes_of(state, jax.devices()[3]) < 1.1 * whole / 8
    assert program.memory_analysis().temp_size_in_bytes < alone[2].memory_analysis().temp_size_in_bytes


def assert_close(loss, state, alone):
    np.testing.assert_allclose(loss, alone[0], rtol=2e-6)
    for got, expected in zip(gradients(state), gradients(alone[1]), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * np.max(np.abs(expected)))


# Runs


def test_a_run_goes_on_over_another_mesh(tmp_path):
    """What was saved is what is loaded, wherever it lies; and the model that was given is not consumed."""
    config = dataclasses.replace(RUN, steps=4, checkpoint_every=2, evaluate_every=4, log_every=1, fully_sharded=True)
    two, losses = make_mesh(data=2), {}
    model = ssmkit.shard(Bigram(64, 8), two)
    before = jax.tree.map(np.asarray, eqx.filter(model, eqx.is_array))
    whole = fit(model, config, IDS, IDS[:50], tmp_path / "whole", lambda one: losses.update({one.step: one.train_loss}))
    assert mesh_of(whole).devices.size == 2  # that of the model
    assert_same(before, eqx.filter(model, eqx.is_array))
    with dying(3) as report:
        fit(model, config, IDS, IDS[:50], tmp_path / "moved", report)
    optimizer, params = make_optimizer(config), eqx.filter(Bigram(64, 8), eqx.is_inexact_array)
    on_one = read_state(tmp_path / "moved" / "states" / "2", start(params, optimizer))
    four = mesh_for(make_mesh(data=4), model, config)
    on_four = read_state(
        tmp_path / "moved" / "states" / "2", start_on(params, optimizer, place_of(on_one, four, fully_sharded=True))
    )
    assert_same(on_one, on_four)
    assert on_four.model.embedding.weight.sharding.mesh == four
    resumed = {}
    fit(
        model,
        config,
        IDS,
        IDS[:50],
        tmp_path / "moved",
        lambda one: resumed.update({one.step: one.train_loss}),
        mesh=four,
    )
    assert resumed == {step: pytest.approx(losses[step], rel=2e-6) for step in (3, 4)}


def test_fused_layers_are_saved_whole(tmp_path):
    """A run over `model`, where they are held apart, goes on without it; and the other way round."""
    config = dataclasses.replace(RUN, steps=4, checkpoint_every=2, evaluate_every=4, log_every=1)
    mixers = [Mamba2Mixer(16, state_size=4, head_dim=8, key=jax.random.key(0))]
    model = ssmkit.LanguageModel(64, 16, mixers, tie_word_embeddings=True, key=jax.random.key(1))
    meshes = {"alone": None, "over": make_mesh(data=2, model=2)}
    losses = {name: {} for name in meshes}
    for name, mesh in meshes.items():
        with dying(3) as report:
            fit(model, config, IDS, IDS[:50], tmp_path / name, report, mesh=mesh)
        other = meshes["over" if mesh is None else "alone"]
        given = model if other is None else ssmkit.shard(model, other)
        record = lambda one, name=name: losses[name].update({one.step: one.train_loss})
        fit(given, config, IDS, IDS[:50], tmp_path / name, record, mesh=other)
    assert losses["over"] == {step: pytest.approx(losses["alone"][step], rel=2e-6) for step in (3, 4)}


def test_meshes_that_do_not_fit(tmp_path):
    for mesh, problem in [
        (make_mesh(data=3), r"`batch_size` must be a multiple of the 3 devices along the mesh's axis `data`, got 8"),
        (jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2]), "`mesh` must have axes of data, model, sequence"),
        ("data=2", "`mesh` must be a `jax.sharding.Mesh`"),
    ]:
        with pytest.raises(ValueError, match=problem):
            fit(Bigram(64, 8), RUN, IDS, IDS[:50], tmp_path / "out", ignore, mesh=mesh)
    assert not (tmp_path / "out").exists()
