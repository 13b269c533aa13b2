"""Caches and generations in files: what comes back is what was saved, or one error says why not."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from damage import full_disk
from helpers import trees_equal_bitwise

import ssmkit
from ssmkit.models import LRUMixer, Mamba2, Mamba2Config


VOCAB, ROWS = 11, [[3, 1, 4], [1], [5, 9]]
SAMPLER = ssmkit.Sampler(temperature=2.0, repetition_penalty=1.5)


@pytest.fixture(scope="module")
def model():
    return build(VOCAB, 2)


def build(vocab_size: int, layers: int) -> Mamba2:
    config = Mamba2Config(
        vocab_size=vocab_size, hidden_size=8, num_hidden_layers=layers, state_size=4, head_dim=4, n_groups=1
    )
    return Mamba2(config, key=jax.random.key(0))


@pytest.fixture(scope="module")
def generation(model):
    return ssmkit.generate(model, ROWS, 4, SAMPLER, key=jax.random.key(1))


def test_a_session_goes_on_from_its_file(model, generation, tmp_path):
    """Cache, logits, history and random state: the same tokens follow."""
    ssmkit.save_cache(generation, tmp_path / "session")
    loaded = ssmkit.load_cache(tmp_path / "session", model)
    assert trees_equal_bitwise(loaded, generation)
    expected = ssmkit.resume(model, generation, 6, SAMPLER)
    assert trees_equal_bitwise(ssmkit.resume(model, loaded, 6, SAMPLER), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["session"]


def test_a_generation_without_a_key_or_a_history(model, tmp_path):
    greedy = ssmkit.generate(model, ROWS, 0)
    ssmkit.save_cache(greedy, tmp_path / "session")
    loaded = ssmkit.load_cache(tmp_path / "session", model)
    assert trees_equal_bitwise(loaded, greedy)
    with pytest.raises(ValueError, match="`key` is needed by Sampler: `generation` was made without one"):
        ssmkit.resume(model, loaded, 2, ssmkit.Sampler())


def test_equinox_stores_a_generation_too(model, generation, tmp_path):
    eqx.tree_serialise_leaves(tmp_path / "session.eqx", generation)
    like = jax.tree.map(jnp.zeros_like, generation)
    assert trees_equal_bitwise(eqx.tree_deserialise_leaves(tmp_path / "session.eqx", like), generation)


class Assorted(ssmkit.AbstractMixer):
    """Its cache has every kind of number."""

    def init_cache(self):
        kinds = (jnp.bfloat16, jnp.complex64, jnp.int8, bool, jnp.float64)
        return {str(i): jnp.ones((2, 3), kind) for i, kind in enumerate(kinds)} | {"scalar": jnp.zeros((), jnp.int32)}

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        return x, cache

    def step(self, x, cache, *, valid=None):
        return x, cache


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(VOCAB, 2),
        lambda: LRUMixer(8, state_size=4, key=jax.random.key(0)),
        Assorted,
        lambda: ssmkit.GatedMLP(8, intermediate_size=12, key=jax.random.key(0)),
    ],
    ids=["tuples", "complex", "every kind", "nothing"],
)
def test_caches_of_one_sequence_and_of_several(make, tmp_path):
    module, path = make(), str(tmp_path / "cache")
    one = jax.tree.map(lambda x: jnp.asarray(np.arange(x.size).reshape(x.shape)).astype(x.dtype), module.init_cache())
    for cache in (one, jax.tree.map(lambda x: jnp.stack([x, x, x]), one)):
        ssmkit.save_cache(cache, path)
        assert trees_equal_bitwise(ssmkit.load_cache(path, module), cache)


# What is refused


def tensors_of(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safetensors.safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors.pop("cache/1/state"), r"only one of the two has \['cache/1/state'\]"),
        (lambda tensors: tensors.update(more=np.zeros(2)), r"only one of the two has \['more'\]"),
        (lambda tensors: tensors.pop("tokens"), r"a generation has \['tokens'\] too"),
        (
            lambda tensors: tensors.update(lengths=np.zeros(3)),
            r"`lengths` must be int32 with the axes \('batch',\), got float64 of",
        ),
        (lambda tensors: tensors.update(tokens=np.full((3, 4), VOCAB, np.int32)), r"`tokens` must lie in \[0, 11\)"),
        (lambda tensors: tensors.update(lengths=np.full(3, -1, np.int32)), r"`lengths` must lie in \[0, 5\)"),
        (lambda tensors: tensors.update(lengths=np.full(3, 5, np.int32)), r"`lengths` must lie in \[0, 5\)"),
        (lambda tensors: tensors.update(last=np.full(3, VOCAB, np.int32)), r"`last` must lie in \[0, 11\)"),
        (lambda tensors: tensors.update(consumed=np.full(3, -1, np.int32)), r"`consumed` must lie in \[0, "),
        (lambda tensors: tensors.pop("consumed"), r"a generation has \['consumed'\] too"),
        (
            lambda tensors: tensors.update(finished=np.zeros(2, bool)),
            r"`finished` must have the axes .* with .*'batch': 3.*, got shape \(2,\)",
        ),
        (lambda tensors: tensors.update(keys=np.zeros((3, 3), np.uint32)), "`keys` are not of the kind 'threefry2x32'"),
        (
            lambda tensors: tensors.update(logits=np.zeros((3, 10), np.float32)),
            "`logits` must have the axes .* with .*'vocab': 11.*, got shape",
        ),
        (
            lambda tensors: tensors.update(logits=np.zeros((2, 11), np.float32)),
            "`.*` must have the axes .* with .*'batch': 2.*got shape",
        ),
        (
            lambda tensors: tensors.update({"cache/0/state": tensors["cache/0/state"][:2]}),
            "`cache/.*` must be float32 of shape .*, with one batch axis before it or none, the same for all, got",
        ),
        (
            lambda tensors: tensors.update({"cache/0/state": tensors["cache/0/state"].astype(np.float16)}),
            "`cache/0/state` must be float32 of shape .* got float16",
        ),
    ],
)
def test_what_does_not_fit(model, generation, tmp_path, change, message):
    ssmkit.save_cache(generation, path := tmp_path / "session")
    tensors, metadata = tensors_of(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=f"{path} does not fit this model: .*{message}"):
        ssmkit.load_cache(path, model)


def test_keys_of_no_known_kind(model, generation, tmp_path):
    ssmkit.save_cache(generation, path := tmp_path / "session")
    safetensors.numpy.save_file(tensors_of(path)[0], path, {"key_kind": "dice"})
    with pytest.raises(ValueError, match="does not fit this model: `keys` are not of the kind 'dice'"):
        ssmkit.load_cache(path, model)


@pytest.mark.parametrize("vocab_size, layers", [(VOCAB, 1), (VOCAB + 1, 2)], ids=["fewer layers", "another vocabulary"])
def test_another_model(generation, tmp_path, vocab_size, layers):
    ssmkit.save_cache(generation, path := tmp_path / "session")
    with pytest.raises(ValueError, match=f"{path} does not fit this model"):
        ssmkit.load_cache(path, build(vocab_size, layers))


def test_what_is_no_model(model, generation, tmp_path):
    ssmkit.save_cache(generation, path := tmp_path / "session")
    with pytest.raises(ValueError, match="`model` must be a language model or a mixer, got NoneType"):
        ssmkit.load_cache(path, None)
    with pytest.raises(ValueError, match="it holds the generation of a language model"):
        ssmkit.load_cache(path, Layers())


class Layers(ssmkit.AbstractMixer):
    """Its cache is of the form of the model's."""

    def init_cache(self):
        return build(VOCAB, 2).init_cache()

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        return x, cache

    def step(self, x, cache, *, valid=None):
        return x, cache


@pytest.mark.parametrize("name", ["absent", "folder", "pipe", "x" * 5000], ids=lambda name: name[:6])
def test_what_is_no_file(model, tmp_path, name):
    os.mkdir(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ssmkit.load_cache(tmp_path / name, model)


@pytest.mark.parametrize("cache", [None, 3, {"a": 3}, (jnp.zeros(2), "b")], ids=str)
def test_what_is_no_cache(tmp_path, cache):
    if cache is None:  # a tree without leaves, and the cache of a model that remembers nothing
        return ssmkit.save_cache(cache, tmp_path / "cache")
    with pytest.raises(ValueError, match="`cache` must hold arrays, got (int|str)"):
        ssmkit.save_cache(cache, tmp_path / "cache")
    assert not os.listdir(tmp_path)


def test_a_full_disk_loses_nothing(model, generation, tmp_path):
    ssmkit.save_cache(generation.cache, path := tmp_path / "session")
    with full_disk(1000), pytest.raises(OSError, match="session"):
        ssmkit.save_cache(generation, path)
    assert trees_equal_bitwise(ssmkit.load_cache(path, model), generation.cache)
    assert os.listdir(tmp_path) == ["session"]


def test_a_folder_that_is_not_there(generation, tmp_path):
    with pytest.raises(OSError, match="No such file or directory: .*absent/session"):
        ssmkit.save_cache(generation, tmp_path / "absent" / "session")
