"""Scaled rotations against HF transformers, live: frequencies, and the keys of configuration files."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variant import LLAMA3, YARN

import ssmkit
from ssmkit.models.hybrids import lfm2
from ssmkit.operators._rotary import frequencies


transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

HF: Any = lfm2.ARCHITECTURE.dialects[0]
PUBLISHED = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS = {
    "linear": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0},
    "llama3": LLAMA3,
    "llama3, published": PUBLISHED | {"rope_theta": 5e5, "original_max_position_embeddings": 8192},
    "yarn": YARN,
    "yarn, bounds": YARN | {"beta_fast": 9.0, "beta_slow": 2.5, "truncate": False, "attention_factor": 0.7},
    "yarn, published": YARN | {"rope_theta": 1e6, "original_max_position_embeddings": 32768, "factor": 4.0},
    "yarn, scales": YARN | {"mscale": 0.707, "mscale_all_dim": 1.3},
    "yarn, all scaled": YARN | {"original_max_position_embeddings": 5},
}


@pytest.mark.parametrize("dim", [2, 10, 64, 128])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_frequencies(scaling, dim):
    """Float32 powers of HF transformers are off by a few roundings."""
    config = transformers.Lfm2Config(hidden_size=2 * dim, num_attention_heads=2, rope_parameters=dict(scaling))
    expected, size = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config)
    given = {name: value for name, value in scaling.items() if name != "rope_theta"}
    operator = ssmkit.Attention(2, dim, rope_theta=scaling["rope_theta"], rope_scaling=given)
    got, factor = frequencies(operator.rope_theta or 0.0, dim, operator.rope_scaling)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert factor == pytest.approx(size, rel=1e-12)


def test_scaling_changes_what_is_rotated():
    """Rotated features of keys have the factor too, and other features have not."""
    operator = ssmkit.Attention(1, 8, rotary_dim=4, rope_scaling=YARN | {"rope_theta": None, "attention_factor": 3.0})
    one = jnp.ones((2, 1, 8))
    _, state = operator.chunk_scan((one, one, one), operator.reserve(operator.init_state(), 2))
    norms = jnp.sum(jnp.reshape(state.keys[0, :2], (2, 2, 4)) ** 2, axis=-1)
    np.testing.assert_allclose(norms, [[36.0, 4.0]] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        {"rope_parameters": YARN},
        {"rope_scaling": {"type": "yarn", "factor": 6.0}, "rope_theta": 800.0, "max_position_embeddings": 100},
        {"rope_scaling": YARN, "rope_parameters": LLAMA3},
        {"rope_scaling": YARN | {"attention_factor": None}, "max_position_embeddings": 700},
        {"rope_scaling": YARN, "original_max_position_embeddings": 50},
        {"rope_scaling": {}, "rope_parameters": LLAMA3},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": LLAMA3, "rope_theta": 77.0},
        {"rope_scaling": None, "rope_theta": 5.0},
    ],
    ids=str,
)
def test_keys_of_files(content):
    """Both spellings say what they say to HF transformers."""
    theirs = transformers.Lfm2Config(**{name: dict(v) if isinstance(v, dict) else v for name, v in content.items()})
    theirs.standardize_rope_params()  # as it does before it computes frequencies
    expected = {name: value for name, value in theirs.rope_parameters.items() if value is not None and name != "type"}
    config = HF.read_config({"model_type": "lfm2"} | content)
    got = {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta}
    assert got == expected
    again = HF.read_config(HF.write_config(config, "float32"))
    assert again == config and hash(again) == hash(config)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "`rope_type` is one of linear, llama3, yarn, got .*dynamic"),
        ({"factor": 2.0}, "`rope_type` is one of"),
        ({"rope_type": "yarn", "factor": 2.0}, "type yarn must have original_max_position_embeddings"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 1.0}, "type linear cannot have beta_fast"),
        ({"rope_type": "linear", "factor": 0.0}, "`rope_scaling.factor` must be a number above 0"),
        (LLAMA3 | {"rope_theta": None, "high_freq_factor": 1.0}, "`rope_scaling.high_freq_factor` must be above"),
    ],
)
def test_mistakes(scaling, message):
    with pytest.raises(ValueError, match=message):
        ssmkit.Attention(2, 8, rope_scaling=scaling)
    with pytest.raises(ValueError, match=message):
        ssmkit.AttentionMixer(16, num_heads=2, rope_scaling=scaling, key=jax.random.key(0))


def test_a_description_holds_the_table():
    layer = {"mixer": "attention", "num_heads": 2, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    config = ssmkit.LanguageModelConfig(vocab_size=9, hidden_size=8, layers=[layer])
    model = ssmkit.build(config, key=jax.random.key(0))
    assert model.config == dataclasses.replace(config) and hash(model.config) == hash(config)
    assert model.blocks[0].mixer.attention.rope_scaling == layer["rope_scaling"]
