"""Mamba against its equations in float64, and its checkpoints."""

import dataclasses
import json
import math
from typing import Any

import against
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from cases_mamba import LANGUAGE_MODELS, mamba_config
from helpers import build, forward, relative_error, trees_equal_bitwise
from test_cli import own_cache, run  # noqa: F401

import ssmkit
from ssmkit.checkpoint import CheckpointError, architectures, describe, open_tensors
from ssmkit.models import Mamba, Mamba2, Mamba2Config, MambaConfig, MambaRecurrence
from ssmkit.models.mamba import MambaInputs


# The recurrence.


def test_the_recurrence_is_the_selective_scan():
    """Values, final state and gradients, chunked and stepped, at decays from 1 - 1e-6 to 1e-30 in one sequence."""
    channels, size, time = 6, 5, against.TIME
    rng = np.random.default_rng(0)
    recurrence = MambaRecurrence(mamba_config(intermediate_size=channels), key=jax.random.key(0))
    dt_bias = rng.normal(size=channels)
    # Where dt is 1 for the first state, log(decay) = -dt exp(A_log) is what is drawn.
    log_decay = against.log_decays(rng, time, channels)
    dt = np.where(-log_decay < 30, np.log(np.expm1(np.minimum(-log_decay, 30))), -log_decay) - dt_bias
    A_log = np.concatenate([np.zeros((channels, 1)), rng.uniform(-2, 2, (channels, size - 1))], axis=1)
    recurrence = eqx.tree_at(
        lambda r: (r.A_log, r.dt_bias), recurrence, (jnp.asarray(A_log, jnp.float32), jnp.asarray(dt_bias, jnp.float32))
    )
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    # The step size is the input's size too: B x is scaled so that no token drowns the others.
    x = draw(time, channels) * jnp.asarray(1 / np.maximum(-log_decay, 1e-2), jnp.float32)
    inputs = MambaInputs(x=x, dt=jnp.asarray(dt, jnp.float32), B=draw(time, size), C=draw(time, size))
    decays = np.exp(np.asarray(jax.vmap(recurrence.coefficients)(inputs).log_decay[..., 0], np.float64))
    assert np.min(decays) < 1e-25 and 0 < np.min(1 - decays) < 1e-5

    def oracle(recurrence, inputs, state):
        x, dt, B, C = inputs.x, inputs.dt, inputs.B, inputs.C
        with jax.numpy_rank_promotion("allow"):
            y, state = published.selective_scan(x, dt, B, C, recurrence.A_log, recurrence.dt_bias, state[..., 0])
        return y[..., None], state[..., None]

    errors = against.errors(recurrence, oracle, inputs, draw(channels, size, 1))
    assert {name: error for name, error in errors.items() if not error <= against.BOUND} == {}


def test_the_step_size_is_float32_whatever_the_weights():
    config = mamba_config()
    model = Mamba(config, key=jax.random.key(0), dtype=jnp.bfloat16)
    mixer = model.blocks[0].mixer
    kept = (mixer.recurrence.A_log, mixer.recurrence.dt_bias, mixer.D, model.norm.weight, model.blocks[0].norm.weight)
    assert {array.dtype for array in kept} == {jnp.dtype(jnp.float32)}
    seen = []

    def advance(operator, inputs, state):
        if isinstance(inputs, MambaInputs):
            seen.extend(jax.tree.leaves((inputs, jax.vmap(operator.coefficients)(inputs))))
        return operator.chunk_scan(inputs, state)

    mixer.mix(jnp.ones((3, config.hidden_size), jnp.float32), mixer.init_cache(), advance)
    assert len(seen) == 8 and {array.dtype for array in seen} == {jnp.dtype(jnp.float32)}


# The model, in NumPy.


def _silu(x):
    return x / (1 + np.exp(-x))


def _rms(x, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def numpy_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Token by token, in float64, of the parameters of `model` under the names of its fields."""
    config = model.config
    rank, size = config.dt_rank, config.state_size
    model = jax.tree.map(lambda array: np.asarray(array, np.float64), model)
    affine = lambda layer, x: x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    x = model.embedding.weight[tokens]
    for block in model.blocks:
        mixer = block.mixer
        u, z = np.split(affine(mixer.in_proj, _rms(x, config.layer_norm_epsilon) * block.norm.weight), 2, axis=-1)
        padded = np.concatenate([np.zeros((config.conv_kernel - 1, config.inner_size)), u])
        taps = [mixer.conv.weight[:, j] * padded[j : j + len(u)] for j in range(config.conv_kernel)]
        u = _silu(sum(taps) + (0 if mixer.conv.bias is None else mixer.conv.bias))
        parts = np.split(affine(mixer.x_proj, u), [rank, rank + size], axis=-1)
        if config.mixer_rms_eps is not None:
            parts = [_rms(part, config.mixer_rms_eps) for part in parts]
        dt = np.logaddexp(0, affine(mixer.dt_proj, parts[0]) + mixer.recurrence.dt_bias)
        h, y = np.zeros((config.inner_size, size)), []
        for u_t, dt_t, B, C in zip(u, dt, *parts[1:], strict=True):
            h = np.exp(-np.exp(mixer.recurrence.A_log) * dt_t[:, None]) * h + np.outer(dt_t * u_t, B)
            y.append(h @ C)
        x = x + affine(mixer.out_proj, (np.array(y) + mixer.D * u) * _silu(z))
    head = model.embedding if model.head is None else model.head
    return (_rms(x, config.layer_norm_epsilon) * model.norm.weight) @ head.weight[: config.vocab_size].T


@pytest.mark.parametrize("name", ["mamba", "falcon-mamba"])
def test_logits(name):
    model = build(next(case for case in LANGUAGE_MODELS if case.id == name))
    tokens = np.random.default_rng(0).integers(model.vocab_size, size=21)
    assert relative_error(forward(model, jnp.asarray(tokens)), numpy_logits(model, tokens)) < 4e-6


def test_initialisation_is_that_of_the_papers_code():
    config = MambaConfig(vocab_size=7, hidden_size=64, num_hidden_layers=4, tie_word_embeddings=False)
    mixer = Mamba(config, key=jax.random.key(0)).blocks[1].mixer
    recurrence = mixer.recurrence
    np.testing.assert_allclose(-jnp.exp(recurrence.A_log), -np.tile(np.arange(1.0, 17.0), (128, 1)), rtol=1e-6)
    dt = np.asarray(jax.nn.softplus(recurrence.dt_bias))
    assert 0.001 * 0.999 < dt.min() < 0.0015 and 0.07 < dt.max() < 0.1 * 1.001
    assert np.all(mixer.D == 1)
    for layer, bound in [
        (mixer.in_proj, 64**-0.5),
        (mixer.x_proj, 128**-0.5),
        (mixer.dt_proj, 4**-0.5),
        (mixer.out_proj, 128**-0.5 / 2),
    ]:
        assert 0.98 * bound < np.max(np.abs(layer.weight)) <= bound


# Configurations.


def test_sizes_follow_from_each_other():
    config = MambaConfig(vocab_size=50277, hidden_size=760, num_hidden_layers=1, pad_vocab_size_multiple=8)
    assert (config.intermediate_size, config.time_step_rank, config.padded_vocab_size) == (1520, 48, 50280)
    assert config == dataclasses.replace(config)
    wide = MambaConfig(vocab_size=65024, hidden_size=4096, num_hidden_layers=64, expand=16, intermediate_size=8192)
    assert (wide.inner_size, wide.dt_rank) == (8192, 256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_size": 0, "expand": -1}, "`state_size` must be an integer.* got 0; `expand` must be .* got -1"),
        ({"time_step_rank": 0}, "`time_step_rank` must be an integer, at least 1, or None, got 0"),
        ({"intermediate_size": -3}, "`intermediate_size` must be an integer, at least 1, or None, got -3"),
        ({"mixer_rms_eps": 0.0}, "`mixer_rms_eps` must be above 0, or None, got 0.0"),
        ({"hidden_act": "relu"}, "MambaConfig: `hidden_act` must be 'silu', got 'relu'"),
        ({"time_step_min": -1.0}, "`time_step_min` must be above 0, got -1.0"),
    ],
)
def test_inconsistent_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mamba_config(**changes)


# Checkpoints.

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "padded": {"pad_vocab_size_multiple": 8},
    "biases": {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3},
    "sizes": {"expand": 3, "time_step_rank": 3, "time_step_min": 0.01, "residual_in_fp32": False},
    "falcon": {"mixer_rms_eps": 1e-5, "tie_word_embeddings": False},
    "channels": {"intermediate_size": 9},
    "epsilon": {"layer_norm_epsilon": 1e-6},
    "chunks": {"chunk_size": 4},
    "tokens": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None},
}
INEXPRESSIBLE = {"falcon": "mixer_rms_eps", "channels": "intermediate_size", "epsilon": "layer_norm_epsilon"}
SMALL = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 3}


def random_model(name: str = "plain", dtype=jnp.float32) -> Mamba:
    """No two arrays alike, and none constant."""
    skeleton = eqx.filter_eval_shape(Mamba, MambaConfig(**SMALL | CONFIGS[name]), key=jax.random.key(0), dtype=dtype)
    rng = np.random.default_rng(0)
    fill = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
    return jax.tree.map(lambda leaf: fill(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, skeleton)


def dialect_of(format: str):
    architecture = next(known for known in architectures() if known.name == "mamba")
    return next(dialect for dialect in architecture.dialects if dialect.name == format)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("format", ["hf", "state-spaces"])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trips_are_bit_for_bit(tmp_path, name, format, dtype):
    model = random_model(name, dtype)
    if format == "state-spaces" and name in INEXPRESSIBLE:
        with pytest.raises(CheckpointError, match=f"cannot express this model.\n  - `{INEXPRESSIBLE[name]}`: got"):
            ssmkit.save_pretrained(model, tmp_path, format=format)
        return
    ssmkit.save_pretrained(model, tmp_path, format=format)
    checkpoint = describe(tmp_path)
    assert (checkpoint.architecture.name, checkpoint.dialect.name) == ("mamba", format)
    loaded = ssmkit.from_pretrained(tmp_path)
    if format == "state-spaces" and name in ("tokens", "chunks"):  # these are lost, and nothing else
        plain = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "chunk_size": None}
        assert loaded.config == dataclasses.replace(model.config, **plain)
        assert trees_equal_bitwise(jax.tree.leaves(loaded), jax.tree.leaves(model))
    else:
        assert trees_equal_bitwise(loaded, model)
    content = json.loads((tmp_path / "config.json").read_text())
    assert ("mixer_rms_eps" in content) == (name == "falcon")
    assert content.get("model_type") == (None if format != "hf" else "falcon_mamba" if name == "falcon" else "mamba")


def test_published_state_spaces_configuration(tmp_path):
    """As the file of `mamba-130m`, but for the key `tie_embeddings`, which is younger."""
    content = {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True}
    content |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="holds no weights: expected `pytorch_model.bin`"):
        describe(tmp_path)
    dialect = dialect_of("state-spaces")
    config = dialect.read_config(content)
    assert (config.padded_vocab_size, config.inner_size, config.dt_rank, config.state_size) == (50280, 1536, 48, 16)
    assert config.tie_word_embeddings and config.mixer_rms_eps is None
    assert dialect.write_config is not None
    written = dialect.write_config(config, "float16")
    assert written.pop("tie_embeddings") is True
    assert {name: value for name, value in written.items() if name in content} == content
    assert dialect.read_config(content | {"ssm_cfg": {"layer": "Mamba1", "dt_rank": "auto"}}) == config


def test_published_hf_configurations():
    """Of `mamba-130m-hf`, which also holds what it was converted from, and of `falcon-mamba-7b`."""
    dialect = dialect_of("hf")
    content = {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280, "expand": 2}
    content |= {"intermediate_size": 1536, "time_step_rank": 48, "state_size": 16, "conv_kernel": 4, "ssm_cfg": {}}
    content |= {"d_inner": 1536, "d_model": 768, "n_layer": 24, "fused_add_norm": True, "rms_norm": True}
    content |= {"pad_vocab_size_multiple": 8, "use_bias": False, "use_conv_bias": True, "initializer_range": 0.1}
    config = dialect.read_config(content)
    assert (config.vocab_size, config.inner_size, config.dt_rank) == (50280, 1536, 48)
    content = {"model_type": "falcon_mamba", "hidden_size": 4096, "num_hidden_layers": 64, "vocab_size": 65024}
    content |= {"expand": 16, "intermediate_size": 8192, "time_step_rank": 256, "tie_word_embeddings": False}
    config = dialect.read_config(content)
    assert (config.inner_size, config.mixer_rms_eps, config.tie_word_embeddings) == (8192, 1e-6, False)


@pytest.mark.parametrize(
    ("format", "changes", "message"),
    [
        ("hf", {"mixer_rms_eps": 1e-6}, "`mixer_rms_eps`: got 1e-06, expected nothing: only the `model_type` falcon"),
        ("hf", {"time_step_rank": "small"}, "`time_step_rank`: got 'small', expected an integer of at least 1, or"),
        ("hf", {"model_type": "falcon_mamba", "mixer_rms_eps": 0}, "`mixer_rms_eps` must be above 0"),
        ("hf", {"rms_norm": False}, "`rms_norm`: got False"),
        ("hf", {"intermediate_size": 8}, r"`backbone.layers.0.mixer.D`: got shape \(16,\), expected \(8,\)"),
        (
            "state-spaces",
            {"ssm_cfg": {"headdim": 64}},
            "`ssm_cfg.headdim`: got 64, expected nothing",
        ),
        ("state-spaces", {"ssm_cfg": {"layer": "Mamba2"}}, "do not fit mamba2|cannot be built|head_dim"),
        ("state-spaces", {"ssm_cfg": {"layer": "Mamba3"}}, "name the layer `Mamba2`, or none, .* got .*'Mamba3'"),
        ("state-spaces", {"ssm_cfg": None}, "must name the layer .* got None"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path, format, changes, message):
    ssmkit.save_pretrained(random_model(), tmp_path, format=format)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        ssmkit.from_pretrained(tmp_path)


def test_each_layer_of_state_spaces_goes_to_its_own_architecture(tmp_path):
    ssmkit.save_pretrained(random_model(), tmp_path / "one", format="state-spaces")
    assert "layer" not in json.loads((tmp_path / "one" / "config.json").read_text())["ssm_cfg"]
    second = Mamba2(Mamba2Config(**SMALL, head_dim=4), key=jax.random.key(0))
    ssmkit.save_pretrained(second, tmp_path / "two", format="state-spaces")
    assert describe(tmp_path / "one").architecture.model is Mamba
    assert describe(tmp_path / "two").architecture.model is Mamba2


def test_names_on_disk(tmp_path):
    ssmkit.save_pretrained(random_model("biases"), tmp_path, format="state-spaces")
    tensors = open_tensors(tmp_path / "pytorch_model.bin")
    assert tensors["lm_head.weight"] == tensors["backbone.embedding.weight"]
    prefix = "backbone.layers.1."
    layer = {name.removeprefix(prefix): t.shape for name, t in tensors.items() if name.startswith(prefix)}
    assert layer == {
        "norm.weight": (8,),
        "mixer.in_proj.weight": (32, 8),
        "mixer.in_proj.bias": (32,),
        "mixer.conv1d.weight": (16, 1, 3),
        "mixer.x_proj.weight": (7, 16),
        "mixer.dt_proj.weight": (16, 1),
        "mixer.dt_proj.bias": (16,),
        "mixer.A_log": (16, 3),
        "mixer.D": (16,),
        "mixer.out_proj.weight": (8, 16),
        "mixer.out_proj.bias": (8,),
    }


# The command line.


@pytest.mark.parametrize("name", ["padded", "falcon"])
def test_the_command_line_knows_it(tmp_path, run, name):  # noqa: F811
    tokenizer = ssmkit.Tokenizer.train(["the cat sat on the mat"] * 20, 290)
    config = MambaConfig(**SMALL | CONFIGS[name] | {"vocab_size": tokenizer.vocab_size, "num_hidden_layers": 1})
    folder, other, text = tmp_path / "model", tmp_path / "other", tmp_path / "text.txt"
    model = Mamba(config, key=jax.random.key(0))
    ssmkit.save_pretrained(model, folder)
    tokenizer.save(folder / "tokenizer.json")
    text.write_text("the cat sat")

    def output(*words) -> str:
        code, out, err = run(*words)
        assert code == 0, err
        return out

    result = json.loads(output("inspect", folder, "--json"))
    assert result["architecture"] == "mamba" and result["config"]["intermediate_size"] == 16
    assert result["parameters"] == sum(array.size for array in jax.tree.leaves(model))
    output("convert", folder, other, "--format", "hf" if name == "falcon" else "state-spaces")
    assert trees_equal_bitwise(ssmkit.from_pretrained(other), model)
    assert math.isfinite(json.loads(output("score", "--model", folder, text, "--json"))["perplexity"])
    assert output("generate", "the cat", "--model", folder, "-n", "4", "--temperature", "0").startswith("the cat")
