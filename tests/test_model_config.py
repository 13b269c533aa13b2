"""A model written as a configuration: built, saved, loaded, and extended by installed packages."""

import dataclasses
import inspect
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import trees_equal_bitwise
from plugins import install  # noqa: F401

import ssmkit
import ssmkit.models
from ssmkit import CheckpointError, LanguageModelConfig, build, from_pretrained, save_pretrained
from ssmkit.checkpoint import describe
from ssmkit.mixers._names import MIXERS
from ssmkit.models import MambaConfig


LAYERS = [
    {"mixer": "gla", "num_heads": 2},
    {"mixer": "gated_mlp", "intermediate_size": 6},
    {"mixer": "rg_lru", "num_heads": 2},
]
SIZES = {"vocab_size": 11, "hidden_size": 8}
KEY = jax.random.key(0)


def config(layers=LAYERS, **changes):
    return LanguageModelConfig(**SIZES | {"layers": layers} | changes)


def test_a_model_is_what_its_configuration_says():
    it = config(tie_word_embeddings=True, norm="layer_norm", norm_eps=1e-3, eos_token_id=[3, 4], embedding_norm=True)
    model = build(it, key=KEY)
    assert isinstance(model, ssmkit.LanguageModel)
    assert [type(block.mixer).__name__ for block in model.blocks] == ["GLAMixer", "GatedMLP", "RGLRUMixer"]
    assert model.config == it and model.stop_tokens == (3, 4) and model.head is None
    norms = [model.norm, model.embedding_norm, *(block.norm for block in model.blocks)]
    assert all(isinstance(norm, ssmkit.LayerNorm) and norm.eps == 1e-3 for norm in norms)
    assert trees_equal_bitwise(model, build(it, key=KEY)) and hash(it) == hash(dataclasses.replace(it))
    content = {"model_type": "ssmkit", **json.loads(json.dumps(dataclasses.asdict(it)))}
    assert trees_equal_bitwise(model, build(content, key=KEY))


def test_every_mixer_of_the_package_has_a_name():
    mixers = [
        it for _, it in inspect.getmembers(ssmkit.models, inspect.isclass) if issubclass(it, ssmkit.AbstractMixer)
    ]
    blocks = ssmkit.AbstractBlock, ssmkit.AbstractMixer, ssmkit.AbstractRecurrentMixer
    mixers += [it for it in vars(ssmkit).values() if inspect.isclass(it) and issubclass(it, ssmkit.AbstractMixer)]
    blocks = *blocks, ssmkit.ResidualBlock, ssmkit.ScannedBlocks  # made of mixers, not of a width and keywords
    assert {*mixers} - {*blocks} <= {MIXERS[name] for name in MIXERS.built_in}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded(tmp_path, dtype):
    model = build(config(eos_token_id=3), key=KEY, dtype=dtype)
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert trees_equal_bitwise(again, model) and again.config == model.config
    found = describe(tmp_path)
    assert (found.architecture.name, found.dialect.name, found.config) == ("ssmkit", "ssmkit", model.config)
    assert sorted(found.tensors) == sorted(found.dialect.names(found.config))
    tokens = jnp.asarray([1, 2, 3], jnp.int32)
    assert trees_equal_bitwise(again(tokens), model(tokens))
    assert from_pretrained(tmp_path, quantize="int8").embedding.weight.values.dtype == jnp.int8


def test_configurations_of_other_architectures_are_built():
    mamba = MambaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, state_size=2)
    assert type(build(mamba, key=KEY)) is ssmkit.models.Mamba
    with pytest.raises(CheckpointError, match="`config` must be a dictionary or one of `Mamba2Config`, .* got 3"):
        build(3, key=KEY)
    with pytest.raises(CheckpointError, match="`model_type` must be one of mamba2, mamba, .*, ssmkit, got 'gpt2'"):
        build({"model_type": "gpt2"}, key=KEY)
    with pytest.raises(CheckpointError, match="keys that are unknown: remove them.\n.*`layer`: got 3"):
        build({"model_type": "ssmkit", **SIZES, "layers": [], "layer": 3}, key=KEY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 0, "norm": "batch"},
            "`vocab_size` must be an integer.* 1, got 0; `norm` must be 'rms",
        ),
        ({"layers": {"mixer": "gla"}}, "`layers` must be a list, got"),
        ({"layers": ["gla"]}, r"`layers\[0\]` must be a table with the name of a mixer, such as .*, got 'gla'"),
        ({"layers": [{"mixer": "glu"}]}, r"`layers\[0\].mixer` must be one of .*gla, .*, got 'glu'"),
        ({"layers": [*LAYERS, {"mixer": "gla", "heads": 2}]}, r"`layers\[3\].heads` is unknown \(known: .*num_heads"),
        ({"layers": [{"mixer": "gated_mlp"}]}, r"`layers\[0\].intermediate_size` is missing"),
        ({"layers": [{"mixer": "gla", "num_heads": "2"}]}, r"`layers\[0\].num_heads` must be an integer.*, got '2'"),
        ({"layers": [{"mixer": "gla", "width": 8}]}, r"`layers\[0\].width` is unknown"),
        ({"embedding_multiplier": -1.0}, "`embedding_multiplier` must be a number above 0, got -1.0"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_what_a_mixer_refuses_names_the_layer():
    with pytest.raises(ValueError, match=r"`layers\[1\]` \(gla\): GLAMixer: .*num_heads"):
        build(config([LAYERS[1], {"mixer": "gla", "num_heads": 3}]), key=KEY)


def test_a_layer_cannot_be_changed():
    it = config()
    with pytest.raises(TypeError, match="cannot be changed"):
        it.layers[0]["num_heads"] = 4  # pyright: ignore[reportIndexIssue]
    with pytest.raises(TypeError, match="cannot be changed"):
        it.layers[0].update(num_heads=4)


def test_a_model_made_of_mixers_in_code_is_not_saved(tmp_path):
    model = ssmkit.LanguageModel(11, 8, [ssmkit.GatedMLP(8, intermediate_size=6, key=KEY)], key=KEY)
    with pytest.raises(CheckpointError, match="was not made of a configuration.*Write it as a `LanguageModelConfig`"):
        save_pretrained(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Halving(ssmkit.AbstractMixer[tuple]):
    """A mixer of another package."""

    weight: jax.Array
    power: int = eqx.field(static=True)

    def __init__(self, width, *, power: int = 1, key):
        self.weight = jnp.full((), 0.5, jnp.float32)
        self.power = power

    def init_cache(self):
        return ()

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        return self.weight.astype(x.dtype) ** self.power * x, cache

    def step(self, x, cache, *, valid=None):
        return self.weight.astype(x.dtype) ** self.power * x, cache


def test_mixers_of_installed_packages(tmp_path, install):  # noqa: F811
    layers = [{"mixer": "halving", "power": 2}, *LAYERS]
    with pytest.raises(ValueError, match="`layers.0..mixer` must be one of"):
        config(layers)
    install("ssmkit.mixers", "halving", Halving)
    install("ssmkit.mixers", "gla", Halving)  # taken
    install("ssmkit.mixers", "broken")
    model = build(config(layers), key=KEY)
    assert isinstance(model.blocks[0].mixer, Halving) and not isinstance(model.blocks[1].mixer, Halving)
    save_pretrained(model, tmp_path / "model")
    assert trees_equal_bitwise(from_pretrained(tmp_path / "model"), model)
    np.testing.assert_array_equal(model.blocks[0].mixer.prefill(jnp.ones((1, 8)), ())[0], 0.25 * np.ones((1, 8)))


def test_a_file_of_other_sizes_is_refused_before_it_is_laid_out(tmp_path):
    save_pretrained(build(config(), key=KEY), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for layers, message in (
        ([*LAYERS[:1], {"mixer": "gated_mlp", "intermediate_size": 10**12}], "`layers.1..intermediate_size`: got 10"),
        (LAYERS * 50, "`layers`: got 150 entries, and the files hold"),
        (LAYERS[:2], "unexpected"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | {"layers": layers}))
        with pytest.raises(CheckpointError, match=message):
            from_pretrained(tmp_path)
