"""Against the real PyTorch and transformers, where they are installed."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmkit.checkpoint import from_pretrained, save_pretrained
from ssmkit.checkpoint._torch_pickle import open_torch_pickle, write_torch_pickle
from ssmkit.models import Mamba2, Mamba2Config


torch = pytest.importorskip("torch")
# transformers warns that it has no CUDA kernels; torch.load that protocols past 2 are unusual
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_saves(tmp_path, protocol):
    path = tmp_path / "a.bin"
    base = torch.randn(4, 6)
    saved = {
        "t": base.T,
        "w": base[1:, 2:4],
        "e": base[:1].expand(3, 6),
        "p": torch.nn.Parameter(base),
        "h": base.half(),
    }
    torch.save(saved, path, pickle_protocol=protocol)
    tensors = open_torch_pickle(path)
    assert list(tensors) == list(saved)
    for name, tensor in saved.items():
        np.testing.assert_array_equal(tensors[name].read(), tensor.detach().numpy())


def test_torch_reads_what_is_written(tmp_path):
    path = tmp_path / "a.bin"
    shared = np.asarray(jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3))
    write_torch_pickle(path, {"a": shared, "b": shared, "s": np.array(2.5), "z": np.zeros((0, 3), np.float16)})
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert loaded["a"].dtype == torch.bfloat16 and loaded["a"].tolist() == shared.tolist()
        assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
        assert loaded["s"].dtype == torch.float64 and loaded["s"].item() == 2.5
        assert loaded["z"].shape == (0, 3)


def hf_config(**changes):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 16,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "state_size": 8,
        "head_dim": 8,
        "num_heads": 4,
    }
    return transformers.Mamba2Config(**(sizes | {"n_groups": 2, "chunk_size": 4, "initializer_range": 1.0} | changes))


def hf_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)[None]).logits[0].numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "use_bias": True},
        {"time_step_limit": (0.01, 0.05), "use_conv_bias": False},
        {"time_step_limit": (0.01, float("inf")), "layer_norm_epsilon": 0.1},
        {"n_groups": 4, "conv_kernel": 3, "residual_in_fp32": False},
    ],
)
def test_hf_checkpoints_both_ways(tmp_path, changes):
    from transformers import Mamba2ForCausalLM

    torch.manual_seed(0)
    theirs = Mamba2ForCausalLM(hf_config(**changes))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    expected = hf_logits(theirs)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(ours(jnp.asarray(TOKENS)), expected, atol=2e-5, rtol=2e-5)

    save_pretrained(ours, tmp_path / "ours")
    loaded: Any = Mamba2ForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    again, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert tuple(again.config.time_step_limit) == tuple(theirs.config.time_step_limit)
    np.testing.assert_array_equal(hf_logits(again), expected)


def test_transformers_reads_a_padded_bfloat16_model(tmp_path):
    from transformers import Mamba2ForCausalLM

    config = Mamba2Config(
        vocab_size=13,
        pad_vocab_size_multiple=8,
        hidden_size=16,
        num_hidden_layers=1,
        tie_word_embeddings=True,
        head_dim=8,
    )
    save_pretrained(Mamba2(config, key=jax.random.key(0), dtype=jnp.bfloat16), tmp_path)
    theirs = Mamba2ForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert theirs.config.vocab_size == 16 and theirs.lm_head.weight.dtype == torch.bfloat16
    assert from_pretrained(tmp_path).config == config


def test_shards_of_transformers(tmp_path):
    from transformers import Mamba2ForCausalLM

    theirs = Mamba2ForCausalLM(hf_config())
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ours = from_pretrained(tmp_path)
    np.testing.assert_allclose(ours(jnp.asarray(TOKENS)), hf_logits(theirs), atol=2e-5, rtol=2e-5)


def test_state_spaces_checkpoint_opens_in_torch(tmp_path):
    config = Mamba2Config(vocab_size=16, hidden_size=16, num_hidden_layers=1, head_dim=8, tie_word_embeddings=True)
    model = Mamba2(config, key=jax.random.key(0))
    save_pretrained(model, tmp_path, format="state-spaces")
    loaded = torch.load(pathlib.Path(tmp_path, "pytorch_model.bin"), weights_only=True)
    assert len(loaded) == 9 + 3
    assert loaded["lm_head.weight"].data_ptr() == loaded["backbone.embedding.weight"].data_ptr()
    np.testing.assert_array_equal(loaded["backbone.norm_f.weight"], model.norm.weight)
