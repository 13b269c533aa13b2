"""Mamba-2 against its equations, in float64 and token by token (`mamba2_numpy`)."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import forward, prefill
from mamba2_numpy import CONFIG, VARIANTS, logits, random_parameters

import ssmkit
from ssmkit.models import Mamba2, Mamba2Config


# As a share of the largest logit. Float32 against float64: 3e-7 to 2e-6 was measured, and 8e-6 at one token where one
# of four groups of channels nearly vanishes before it is normalised.
BOUND = 2e-5
LENGTHS = (1, 2, 3, 17, 65, 257)
BEYOND_HF = {
    "skip per channel": CONFIG | {"D_has_hdim": True, "n_groups": 2},
    "padded vocabulary": CONFIG | {"pad_vocab_size_multiple": 16, "num_hidden_layers": 1},
    "padded vocabulary, tied": CONFIG
    | {"pad_vocab_size_multiple": 64, "tie_word_embeddings": True, "num_hidden_layers": 1},
    "one tap": CONFIG | {"conv_kernel": 1, "num_hidden_layers": 1},
    "chunks of 1": CONFIG | {"expand": 1, "num_heads": 4, "num_hidden_layers": 1, "chunk_size": 1},
}
ALL = VARIANTS | BEYOND_HF


def build(config: dict, parameters: dict[str, np.ndarray]) -> Mamba2:
    """The model with these parameters, each one used."""
    left = dict(parameters)
    model = eqx.filter_eval_shape(Mamba2, Mamba2Config(**config), key=jax.random.key(0))

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for ours, theirs in (
            ("blocks.", "backbone.layers."),
            ("embedding.", "backbone.embeddings."),
            ("mixer.recurrence.", "mixer."),
            ("mixer.conv.", "mixer.conv1d."),
            ("head.", "lm_head."),
        ):
            name = name.replace(ours, theirs)
        return jnp.asarray(left.pop("backbone.norm_f.weight" if name == "norm.weight" else name).reshape(leaf.shape))

    model = jax.tree_util.tree_map_with_path(fill, model)
    assert not left
    return model


@functools.cache
def case(variant: str) -> tuple[Mamba2, np.ndarray, np.ndarray]:
    """Model, tokens and float64 logits; computed once."""
    config = ALL[variant]
    parameters = random_parameters(config)
    tokens = np.random.default_rng(1).integers(0, config["vocab_size"], max(LENGTHS))
    return build(config, parameters), tokens, logits(config, parameters, tokens)


def check(actual, expected):
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= BOUND * np.max(np.abs(expected))


@eqx.filter_jit
def steps(model, tokens):
    def body(cache, token):
        logits, cache = model.step(token, cache)
        return cache, logits

    return jax.lax.scan(body, model.init_cache(), tokens)[1]


@pytest.mark.parametrize("variant", ALL)
def test_logits(variant):
    model, tokens, expected = case(variant)
    assert 2.0 < np.std(expected) or ALL[variant]["tie_word_embeddings"]
    check(forward(model, jnp.asarray(tokens)), expected)


@pytest.mark.parametrize("variant", ["plain", "time steps from below"])
@pytest.mark.parametrize("length", LENGTHS[:-1])
def test_logits_of_every_length(variant, length):
    model, tokens, expected = case(variant)
    check(forward(model, jnp.asarray(tokens[:length])), expected[:length])


@pytest.mark.parametrize("variant", ["plain", "tied, biases", "4 groups, chunks of 64", "skip per channel"])
def test_prefill_of_every_length(variant):
    model, tokens, expected = case(variant)
    for length in LENGTHS:
        # what stands after the valid tokens must not matter
        padded = np.where(np.arange(len(tokens)) < length, tokens, (tokens + 1) % model.vocab_size)
        check(prefill(model, jnp.asarray(padded), jnp.asarray(length)), expected[length - 1])


@pytest.mark.parametrize("variant", ["plain", "time steps in a range", "expand 3, chunks of 16", "skip per channel"])
def test_steps(variant):
    model, tokens, expected = case(variant)
    check(steps(model, jnp.asarray(tokens)), expected)


@pytest.mark.parametrize("variant", ["padded vocabulary", "padded vocabulary, tied"])
def test_padding_rows_are_never_produced(variant):
    config = ALL[variant]
    parameters = random_parameters(config)
    name = "backbone.embeddings.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    assert parameters[name].shape[0] > config["vocab_size"]
    parameters[name][config["vocab_size"] :] = 1e3
    model = build(config, parameters)
    assert forward(model, jnp.arange(3)).shape == (3, config["vocab_size"])
    out = ssmkit.generate(model, [[1, 2, 3]], 32)
    assert out.rows.logits.shape == (1, config["vocab_size"])
    expected = logits(config, parameters, np.concatenate([[1, 2, 3], out.tokens[0]]))
    np.testing.assert_array_equal(out.tokens[0], np.argmax(expected[2:-1], axis=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 7}, r"`num_heads` \* `head_dim` must be .* = 64, got 7 \* 8"),
        ({"n_groups": 3}, "`n_groups` must divide the 8 heads, got 3"),
        (
            {"conv_kernel": 0, "state_size": 0},
            "`conv_kernel` must be an integer, at least 1, got 0; `state_size` must be an integer, at least 1, got 0",
        ),
        ({"hidden_act": "gelu"}, "`hidden_act` must be 'silu' or 'swish' .*, got 'gelu'"),
        (
            {"time_step_limit": (0.2, 0.1)},
            r"`time_step_limit` must be an increasing pair of numbers, at least 0, got \(0.2, 0.1\)",
        ),
        ({"time_step_limit": (0.0, math.nan)}, "`time_step_limit` must be an increasing pair"),
        ({"hidden_size": 2**62}, f"`hidden_size` must be an integer, at most 2147483647, got {2**62}"),
        ({"vocab_size": True}, "`vocab_size` must be an integer, at least 1, got True"),
        ({"layer_norm_epsilon": math.nan}, "`layer_norm_epsilon` must be a finite number above 0, got nan"),
        ({"time_step_max": math.inf}, "`time_step_max` must be a finite number above 0, got inf"),
    ],
)
def test_inconsistent_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Mamba2Config(**(CONFIG | changes))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("time_step_limit", (1,), "an increasing pair of numbers, at least 0"),
        ("time_step_limit", 1, "an increasing pair of numbers, at least 0"),
        ("time_step_limit", (-1, 1), "an increasing pair of numbers, at least 0"),
        ("use_bias", 3, "true or false"),
        ("tie_word_embeddings", "x", "true or false"),
        ("head_dim", 8.0, "an integer, at least 1"),
        ("time_step_min", -1e300, "a finite number above 0"),
        ("time_step_floor", "x", "a finite number"),
    ],
)
def test_values_of_another_type_are_problems(name, value, expected):
    """The configuration's own checks speak, with the run-time type checker and without."""
    with pytest.raises(ValueError) as error:
        Mamba2Config(**CONFIG | {name: value})
    assert str(error.value) == f"Mamba2Config: `{name}` must be {expected}, got {value!r}."


def test_heads_follow_from_the_other_sizes():
    assert Mamba2Config(**{name: value for name, value in CONFIG.items() if name != "num_heads"}).num_heads == 8
