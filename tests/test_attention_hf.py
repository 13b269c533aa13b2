"""Attention against the layers of HF transformers, live: a whole sequence, and token by token."""

import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error

import ssmkit
from ssmkit.operators._rotary import frequencies


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

WIDTH, HEADS, GROUPS, DIM, TIME, WINDOW = 24, 4, 2, 8, 13, 5
BOUND = 2e-6  # both are float32; the worst seen is 4e-7
SIZES = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": DIM,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
SHARED = {"num_heads": HEADS, "num_kv_heads": GROUPS, "head_dim": DIM}
GEMMA = {"query_pre_attn_scalar": 11, "attn_logit_softcapping": 3.0, "sliding_window": WINDOW}
FAMILIES = {
    "Llama": ({}, {}),
    "Qwen2": ({}, {"use_bias": True}),
    "Qwen3": ({}, {"qk_norm": True}),
    "Mistral": ({"sliding_window": WINDOW}, {"sliding_window": WINDOW}),
    "Gemma2": (GEMMA, {"scale": 11**-0.5, "logit_softcapping": 3.0, "sliding_window": WINDOW}),
    "StableLm": ({"head_dim": WIDTH // HEADS}, {"head_dim": WIDTH // HEADS, "partial_rotary_factor": 0.67}),
    "Qwen3Next": ({}, {"qk_norm": True, "use_output_gate": True, "partial_rotary_factor": 0.25}),
}


def theirs(family: str, changes: dict):
    """A layer of the family with random weights, and the rotations of its model."""
    name = {"Qwen3Next": "qwen3_next"}.get(family, family.lower())
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if family in ("StableLm", "Qwen3Next"):
        rope["partial_rotary_factor"] = FAMILIES[family][1]["partial_rotary_factor"]
    config = getattr(transformers, f"{family}Config")(**SIZES | changes, rope_parameters=rope)
    config._attn_implementation = "eager"
    layer = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    attention = getattr(layer, f"{family}Attention")(config, layer_idx=0).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in attention.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return attention, getattr(layer, f"{family}RotaryEmbedding")(config)


def ours(family: str, options: dict, state: dict[str, np.ndarray]) -> ssmkit.AttentionMixer:
    """The mixer with these weights, each one used."""
    mixer = ssmkit.AttentionMixer(WIDTH, **SHARED | options, key=jax.random.key(0))
    if family == "Qwen3Next":  # of every head, the query and then the gate; norms of 1 + weight
        packed = np.reshape(state.pop("q_proj.weight"), (HEADS, 2, DIM, WIDTH))
        state |= {"q_proj.weight": packed[:, 0].reshape(-1, WIDTH), "gate.weight": packed[:, 1].reshape(-1, WIDTH)}
        state |= {f"{name}_norm.weight": 1 + state[f"{name}_norm.weight"] for name in "qk"}
    for name, value in state.items():
        layer, kind = name.split(".")
        where = lambda it, layer=layer, kind=kind: getattr(getattr(it, layer), kind)
        assert where(mixer).shape == value.shape
        mixer = eqx.tree_at(where, mixer, jnp.asarray(value))
    assert len(jax.tree.leaves(eqx.filter(mixer, eqx.is_array))) == len(state)
    return mixer


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_hf(family):
    changes, options = FAMILIES[family]
    layer, rotary = theirs(family, changes)
    state = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    mixer = ours(family, options, state)
    x = np.random.default_rng(0).normal(size=(TIME, WIDTH)).astype(np.float32)
    distance = np.arange(TIME)[:, None] - np.arange(TIME)[None]
    seen = (distance >= 0) & (distance < options.get("sliding_window", TIME))
    mask = torch.from_numpy(np.where(seen, 0.0, -np.inf).astype(np.float32))[None, None]
    with torch.no_grad():
        given = torch.from_numpy(x)[None]
        positions = rotary(given, torch.arange(TIME)[None])
        expected = layer(given, position_embeddings=positions, attention_mask=mask)[0][0].numpy()
    cache = mixer.reserve(mixer.init_cache(), TIME)
    got, after = mixer.prefill(jnp.asarray(x), cache)
    assert relative_error(got, expected) <= BOUND
    step = eqx.filter_jit(lambda mixer, x, cache: mixer.step(x, cache))
    for t in range(TIME):
        y, cache = step(mixer, jnp.asarray(x[t]), cache)
        assert relative_error(y, expected[t]) <= BOUND
    assert relative_error(after.attention.keys, cache.attention.keys) <= BOUND


def test_frequencies_of_rotations():
    """They are HF's, bit for bit, but for powers that PyTorch rounds in another way. All last bits count far away."""
    equal = []
    for theta in (500.0, 1e4, 1e6):
        for dim in (20, 24, 64, 128):
            rope = {"rope_type": "default", "rope_theta": theta}
            config = transformers.LlamaConfig(**SIZES | {"head_dim": dim}, rope_parameters=rope)
            expected = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq.numpy()
            got, _ = frequencies(theta, dim, None)
            np.testing.assert_allclose(got, expected, rtol=3e-7)
            equal.extend(got == expected)
    assert np.mean(equal) > 0.95  # 0.997 was measured; of powers in float64, 0.64
