"""Generation over meshes of eight devices: the tokens of one device, and everything stays where it lies."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generating import compilations
from helpers import trees_equal_bitwise
from jax.sharding import AxisType, NamedSharding

import ssmkit
from ssmkit.generation import _engine, _prompts, _requests
from ssmkit.parallel._place import place_of


pytestmark = [pytest.mark.once, pytest.mark.usefixtures("quick_compilation")]

VOCAB, NEW = 32, 6
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3], [23, 8, 4], [7] * 16]
SAMPLER = ssmkit.Sampler(temperature=0.9, top_k=20, top_p=0.95, repetition_penalty=1.2)
SAMPLERS = [ssmkit.Greedy(), SAMPLER, ssmkit.Greedy(), SAMPLER, SAMPLER]
SHAPES = [(8, 1, 1), (2, 4, 1), (1, 2, 4), (1, 1, 8)]
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
# Sums of a few dozen float32 numbers, in another order.
CLOSE = dict(rtol=0, atol=5e-6)


@functools.cache
def hybrid():
    """A recurrence and attention. The matrices are large, so that the tokens depend on the prompts."""
    layers = [{"mixer": "retnet", "num_heads": 4}, {"mixer": "attention", "num_heads": 4}]
    model = ssmkit.build(
        ssmkit.LanguageModelConfig(vocab_size=VOCAB, hidden_size=16, layers=layers), key=jax.random.key(0)
    )
    return jax.tree.map(lambda x: 3 * x if eqx.is_array(x) and x.ndim > 1 else x, model)


@functools.cache
def mesh_of_shape(shape, kind="auto"):
    return jax.make_mesh(shape, ssmkit.parallel.AXES, axis_types=(KINDS[kind],) * 3)


def spread(shape, kind="auto"):
    return ssmkit.shard(hybrid(), mesh_of_shape(shape, kind))


def generated(model, **more):
    return ssmkit.generate(model, PROMPTS, NEW, SAMPLERS, key=jax.random.key(7), log_probs=2, **more)


def resumed(model, generation):
    return ssmkit.resume(model, generation, NEW, SAMPLERS, log_probs=2)


@functools.cache
def expected():
    first = generated(hybrid())
    assert len({*np.asarray(first.tokens).ravel().tolist()}) > 8, "choose a model that says more"
    return first, resumed(hybrid(), first)


def assert_as_on_one_device(out, wanted):
    for name in ("tokens", "lengths", "finished", "top_tokens"):
        np.testing.assert_array_equal(getattr(out, name), getattr(wanted, name))
    np.testing.assert_array_equal(out.rows.keys, wanted.rows.keys)
    np.testing.assert_array_equal(out.rows.history, wanted.rows.history)
    for name in ("log_probs", "top_log_probs"):
        np.testing.assert_allclose(getattr(out, name), getattr(wanted, name), **CLOSE)


def assert_lies(out, mesh, *, rows):
    """Every array lies on the mesh, spread by rows or not, and the states by their heads."""
    for leaf in jax.tree.leaves(out):
        assert isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh
        assert (tuple(leaf.sharding.spec)[:1] == ("data",)) == rows, leaf.sharding
    if mesh.shape["model"] > 1:
        assert all("model" in leaf.sharding.spec for leaf in jax.tree.leaves(out.cache) if leaf.ndim == 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_tokens_of_one_device(shape, kind):
    """Both kinds of axes share their executables. Five rows divide by no number of devices: the results have all."""
    model, (first, second) = spread(shape, kind), expected()
    out = generated(model)
    assert_as_on_one_device(out, first)
    assert_lies(out, model.embedding.weight.sharding.mesh, rows=False)
    more = resumed(model, out)
    assert_as_on_one_device(more, second)
    assert_lies(more, model.embedding.weight.sharding.mesh, rows=False)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_stay_where_they_are(kind):
    """Four rows over two devices, from call to call; nothing is compiled for another placement of the same rows."""
    model = spread((2, 4, 1), kind)
    mesh = model.embedding.weight.sharding.mesh
    out = ssmkit.generate(model, PROMPTS[:4], 2)
    assert_lies(out, mesh, rows=True)
    more = ssmkit.resume(model, out, 2)
    with compilations() as events:
        again = ssmkit.resume(model, more, 2)
    assert events == []
    stream = ssmkit.stream(model, out, 4)
    columns = np.array(list(stream)).T
    np.testing.assert_array_equal(columns, np.concatenate([more.tokens, again.tokens], axis=1))
    alone = ssmkit.generate(hybrid(), PROMPTS[:4], NEW)
    np.testing.assert_array_equal(columns, alone.tokens[:, 2:])
    for result in (more, again, stream.generation):
        assert_lies(result, mesh, rows=True)


def test_one_row_is_on_every_device():
    model = spread((2, 4, 1))
    out = ssmkit.generate(model, PROMPTS[:1], NEW)
    np.testing.assert_array_equal(out.tokens, expected()[0].tokens[:1])
    assert_lies(out, mesh_of_shape((2, 4, 1)), rows=False)


def test_a_generation_moves():
    """Between one device and two meshes of other shapes and kinds, as rows to resume and as a cache."""
    models = [hybrid(), spread((2, 4, 1)), spread((1, 2, 4), "explicit")]
    outs = [generated(model) for model in models]
    caches = [ssmkit.generate(hybrid(), PROMPTS, NEW, cache=out.cache).tokens for out in outs]
    for model in models:
        for out in outs:
            assert_as_on_one_device(resumed(model, out), expected()[1])
        np.testing.assert_array_equal(ssmkit.generate(model, PROMPTS, NEW, cache=outs[0].cache).tokens, caches[0])
    assert all(np.array_equal(tokens, caches[0]) for tokens in caches)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(outs))


def test_files(tmp_path):
    model = spread((2, 4, 1), "explicit")
    out = generated(model)
    ssmkit.save_cache(out, tmp_path / "session.safetensors")
    loaded = ssmkit.load_cache(tmp_path / "session.safetensors", model)
    assert trees_equal_bitwise(loaded, jax.tree.map(np.asarray, out))
    assert_as_on_one_device(resumed(model, loaded), expected()[1])


def test_rows_of_an_explicit_mesh():
    """They are taken, put and copied, and their states stay spread over `model`."""
    out = ssmkit.generate(spread((2, 4, 1), "explicit"), PROMPTS[:4], NEW)
    alone = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), out)
    take, put, fork = ssmkit.rows.take, ssmkit.rows.put, ssmkit.rows.fork
    for function in (
        lambda rows: take(rows, 2),
        lambda rows: take(rows, jnp.asarray([3, 0, 0])),
        lambda rows: put(rows, 1, take(rows, 3)),
        lambda rows: fork(take(rows, 1), 3),
        lambda rows: ssmkit.rows.where(rows.lengths > 2, rows, rows),
    ):
        got = function(out)
        assert trees_equal_bitwise(jax.tree.map(np.asarray, got), function(alone))
        states = [leaf for leaf in jax.tree.leaves(got.cache) if leaf.size > 64]
        assert states and all("model" in leaf.sharding.spec for leaf in states)


def test_a_prompt_over_sequence(monkeypatch):
    """Each device has its slice of every piece: 4 devices consume 64 tokens at once, in pieces of 16 each."""
    monkeypatch.setattr(_engine, "_PIECE", 16)
    random = np.random.default_rng(0)
    prompts = [random.integers(0, VOCAB, length).tolist() for length in (3, 17, 63, 64, 130)]
    model = spread((1, 2, 4))
    text = lowered(model, prompts).compile().compiled.as_text()
    assert "s32[5,64]" not in text and re.search(r"s32\[6,256\]", text)  # the prompts are whole, a piece is a slice
    out, alone = (ssmkit.generate(one, prompts, NEW, log_probs=0) for one in (model, hybrid()))
    np.testing.assert_array_equal(out.tokens, alone.tokens)
    np.testing.assert_allclose(out.log_probs, alone.log_probs, **CLOSE)


@pytest.mark.parametrize("shape", [(2, 4, 1), (1, 2, 4)], ids=str)
def test_score(shape):
    ids = np.random.default_rng(0).integers(0, VOCAB, 700)
    alone = ssmkit.score(hybrid(), ids)
    for kind in KINDS:
        score = ssmkit.score(spread(shape, kind), ids)
        assert score.tokens == alone.tokens
        assert score.nats_per_token == pytest.approx(alone.nats_per_token, abs=2e-6)


# What is compiled


def lowered(model, prompts, sampler=SAMPLER):
    place, model = place_of(model)
    batch, rows = _prompts.read_prompts(prompts, None, VOCAB, place.sizes)
    keys = jax.random.split(jax.random.key(0), batch.size) if sampler.needs_key else None
    request = _requests.as_request([NEW] * rows, [[]] * rows, [sampler] * rows, batch.size)
    request, batch, keys = place.put((request, batch, keys))
    with place.active():
        inputs = _engine.Inputs(model, request, batch, keys)
        return _engine.begin.lower(inputs, 16, None)  # pyright: ignore[reportFunctionMemberAccess]


EXCHANGES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
COLLECTIVE = re.compile(rf'= (?:\(.*?\)|\S+) ({EXCHANGES})(?:-start)?\(.*op_name="([^"]*)"')


def collectives(text):
    """The names and places of all exchanges between devices."""
    found = COLLECTIVE.findall(text)
    assert len(found) == len(re.findall(r", channel_id=", text))
    return found


@pytest.mark.parametrize("sampler", [ssmkit.Greedy(), SAMPLER], ids=["greedy", "sampler"])
def test_over_data_nothing_is_exchanged_but_whether_rows_are_live(sampler):
    found = collectives(lowered(spread((8, 1, 1)), PROMPTS, sampler).compile().compiled.as_text())
    assert found == [("all-reduce", "jit(begin)/while/cond/reduce_or")]


def test_over_model_a_random_sampler_gathers_the_logits_once():
    """Its loops over the bits of a threshold would otherwise add over the devices in each round."""
    found = collectives(lowered(spread((2, 4, 1)), PROMPTS).compile().compiled.as_text())
    body = [(name, place) for name, place in found if place.startswith("jit(begin)/while/body")]
    assert body and not [place for _, place in body if "while/body" in place.removeprefix("jit(begin)/while/body")]
    layers, embedding = 2, 1
    assert [name for name, _ in body].count("all-reduce") == layers + embedding
    assert [name for name, _ in body].count("all-gather") == 1


@pytest.mark.parametrize(
    "rows, devices, size", [(1, 8, 1), (2, 8, 8), (5, 2, 6), (8, 8, 8), (9, 2, 12), (9, 8, 16), (5, 3, 6), (7, 1, 8)]
)
def test_rows_fill_every_device_equally(rows, devices, size):
    assert _prompts.batch_bucket(rows, devices=devices) == size


@pytest.mark.parametrize("length, devices, size", [(1, 1, 16), (17, 1, 32), (1, 8, 128), (129, 8, 256), (49, 3, 96)])
def test_tokens_fill_every_device_equally(length, devices, size):
    assert _prompts.bucket(length, devices=devices) == size
