"""Zamba2: transformers in memory once, the keys of published files, and mistakes. Needs no PyTorch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import forward
from hybrid_files import edited, saved_hybrid

import ssmkit
from ssmkit.checkpoint import CheckpointError, describe
from ssmkit.checkpoint._skeleton import cache_bytes, parameter_count
from ssmkit.models import GLAMixer, SharedTransformerStack
from ssmkit.models.hybrids import Zamba2Config


saved = saved_hybrid("zamba2")


def test_transformers_are_in_memory_once(saved):
    """A further use adds its adapters and one projection, and keys and values to the cache, but no transformer."""
    model = ssmkit.from_pretrained(saved)
    assert len(model.blocks[0].transformers) == 2 and len(model.blocks[0].uses) == 3
    numbers = sum(tensor.size for tensor in safetensors.numpy.load_file(saved / "model.safetensors").values())
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == numbers
    checkpoint = describe(saved)
    parts = checkpoint.architecture, checkpoint.dialect, checkpoint.config, jnp.float32
    assert parameter_count(*parts) == numbers
    assert cache_bytes(*parts)[1] == 3 * 2 * 120 * 4  # keys and values of three uses, in float32


@pytest.mark.parametrize("kind", ["mamba", "linear_attention"])
def test_keys_of_published_files(saved, tmp_path, kind):
    """Layers under either name, positions beside the other keys, and keys that change nothing."""
    published = dict(
        layer_types=[kind, "hybrid", "hybrid", "hybrid"],
        rope_theta=500.0,
        attention_head_dim=20,
        attention_hidden_size=120,
        ffn_hidden_size=75,
        hybrid_layer_ids=[1, 2, 3],
        kv_channels=10,
        mamba_headdim=10,
        num_logits_to_keep=1,
        num_query_groups=6,
        time_step_floor=1e-4,
        time_step_limit=None,
        time_step_max=0.1,
        time_step_min=0.001,
        use_conv_bias=False,
        use_long_context=False,
        use_mamba_kernels=True,
        use_mem_eff_path=True,
        use_shared_mlp_adapter=True,
    )
    model = ssmkit.from_pretrained(edited(saved, tmp_path, ["layers_block_type"], **published), strict=True)
    assert eqx.tree_equal(model, ssmkit.from_pretrained(saved))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers_block_type": ["mamba", "attention"]}, r"`layers_block_type\[1\]` must be 'mamba' or 'hybrid'"),
        ({"num_hidden_layers": 5}, "`layers_block_type` must have one entry for each of 5 layers, got 4"),
        ({"layers_block_type": 4 * ["mamba"]}, "`layers_block_type` must have a layer of kind 'hybrid'"),
        ({"n_mamba_heads": 7}, r"`n_mamba_heads` must divide `mamba_expand` \* `hidden_size` = 60, got 7"),
        ({"num_attention_heads": 7}, r"`num_attention_heads` must divide 2 \* `hidden_size` = 120, got 7"),
        ({"num_key_value_heads": 2}, "`num_key_value_heads` must be the 6 heads where these have adapters, got 2"),
        ({"tie_word_embeddings": False}, "`tie_word_embeddings` must be true, or `num_mem_blocks` at least 3"),
        ({"use_long_context": True}, "`use_long_context` must be False"),
        ({"use_shared_mlp_adapter": False}, "`use_shared_mlp_adapter` must be True"),
        ({"time_step_limit": [2.0, 1.0]}, "`time_step_limit` must be an increasing pair of numbers"),
        ({"num_mem_blocks": 1}, "`model.layers.2.shared_transformer.self_attn.k_proj.weight`: unexpected"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "`rope_scaling` must be"),
    ],
)
def test_mistakes(saved, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        ssmkit.from_pretrained(edited(saved, tmp_path, **changes))


def test_sizes_that_follow_from_others():
    """The layers are those of Zamba2-2.7B."""
    config = Zamba2Config()
    assert config.hybrids == (6, 12, 18, 24, 30, 36, 42, 47, 51) and len(config.layers_block_type) == 54
    assert (config.intermediate_size, config.num_key_value_heads) == (10240, 32)


@pytest.mark.parametrize("options", [{"quantize": "int8"}, {"dtype": jnp.bfloat16}, {"scan_layers": True}])
def test_forms_of_weights(saved, options):
    """Shared projections and adapters are narrowed too; the logits stay near. No layers are stacked."""
    model, tokens = ssmkit.from_pretrained(saved, **options), jnp.arange(20, dtype=jnp.int32)
    expected = forward(ssmkit.from_pretrained(saved), tokens)
    narrow = {"quantize": jnp.int8, "dtype": jnp.bfloat16, "scan_layers": jnp.float32}[next(iter(options))]
    use, shared = model.blocks[0].uses[1], model.blocks[0].transformers[1]
    for weight in (use.gate_up_adapter.up.weight, use.out_proj.weight, shared.k_proj.weight):
        assert jax.tree.leaves(weight)[0].dtype == narrow
    error = np.max(np.abs(forward(model, tokens) - expected)) / np.max(np.abs(expected))
    assert error <= (0.0 if narrow == jnp.float32 else 0.1)


def test_a_configuration_of_other_mixers(tmp_path):
    """The block is data: any recurrent mixers, saved in this package's own format."""
    attention = {"num_heads": 2, "intermediate_size": 10, "num_transformers": 2, "places": [0, 2, 3]}
    mixers = [{"mixer": "gla", "num_heads": 2}, {"mixer": "short_conv"}, *2 * [{"mixer": "attention", "num_heads": 1}]]
    layers = [{"mixer": "shared_transformers", "mixers": mixers, **attention}, {"mixer": "gla", "num_heads": 2}]
    config = ssmkit.LanguageModelConfig(vocab_size=20, hidden_size=8, layers=layers)
    model = ssmkit.build(config, key=jax.random.key(0))
    ssmkit.save_pretrained(model, tmp_path)
    assert eqx.tree_equal(ssmkit.from_pretrained(tmp_path), model)
    ssmkit.testing.check_model(model, jnp.arange(11, dtype=jnp.int32))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"places": (1, 1)}, ValueError, r"`places` must increase and be in \[0, 1\], got \(1, 1\)"),
        ({"places": (2,)}, ValueError, r"`places` must increase and be in \[0, 1\], got \(2,\)"),
        ({"num_transformers": 2}, ValueError, "`num_transformers` must be at most the 1 layers of `places`, got 2"),
        ({"use_attention_adapters": True}, ValueError, "`use_attention_adapters` needs an `adapter_rank`, got None"),
        ({"num_heads": 3}, ValueError, r"`num_heads` must divide 2 \* `width` = 16 where .*, got 3"),
        ({"mixers": [ssmkit.GatedMLP]}, TypeError, r"`mixers\[0\]` must be an `ssmkit.AbstractRecurrentMixer`"),
    ],
)
def test_mistakes_of_the_block(changes, error, message):
    mixers = [GLAMixer(8, num_heads=2, key=jax.random.key(i)) for i in range(2)]
    options = dict(mixers=mixers, places=(1,), num_heads=2, intermediate_size=10) | changes
    with pytest.raises(error, match=message):
        SharedTransformerStack(8, **options, key=jax.random.key(0))
