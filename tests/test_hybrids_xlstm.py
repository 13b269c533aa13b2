"""What only xLSTM's files have: projections as one matrix, two names of one size, and options that nobody uses."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import forward
from hf_models import check, hf_logits
from hybrid_variants import VARIANTS, hybrid, random_tensor

import ssmkit
from ssmkit.checkpoint import CheckpointError
from ssmkit.models.hybrids import XLSTMConfig
from ssmkit.models.hybrids.xlstm import ARCHITECTURE


CONTENT = {"model_type": "xlstm", **VARIANTS["xlstm"].config}


@pytest.mark.filterwarnings("ignore")
def test_fused_matrices(tmp_path):
    """HF builds such a model, but neither initialises it nor reads its file: its code has wrong shapes there."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.initialization import no_init_weights

    with no_init_weights():
        theirs = transformers.xLSTMForCausalLM(
            transformers.xLSTMConfig(**VARIANTS["xlstm"].config, weight_mode="fused")
        ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.from_numpy(random_tensor(name, tuple(parameter.shape))))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ssmkit.from_pretrained(tmp_path / "theirs", strict=True)
    tokens = np.random.default_rng(1).integers(0, 97, 50)
    check(forward(ours, jnp.asarray(tokens)), hf_logits(theirs, tokens))
    ssmkit.save_pretrained(ours, tmp_path / "ours")
    written, read = (safetensors.numpy.load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert written.keys() == read.keys()
    for name, value in read.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_two_names_of_one_size(tmp_path):
    model = hybrid("xlstm")
    ssmkit.save_pretrained(model, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content |= {"embedding_dim": content.pop("hidden_size"), "num_blocks": content.pop("num_hidden_layers")}
    path.write_text(json.dumps(content))
    assert ssmkit.from_pretrained(tmp_path, strict=True).config == model.config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_blocks", 5, "`num_hidden_layers` and `num_blocks` must be equal, got 3 and 5"),
        ("use_bias", True, "`use_bias` must be False"),
        ("tie_word_embeddings", True, "`tie_word_embeddings` must be False"),
        ("v_dim_factor", 0.9, r"`hidden_size` \* `v_dim_factor` must be a positive multiple of the 7 heads, got 54"),
    ],
)
def test_refused(key, value, message, tmp_path):
    content = CONTENT | {key: value} | ({"num_heads": 7, "qk_dim_factor": 0.7} if key == "v_dim_factor" else {})
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        ssmkit.from_pretrained(tmp_path)


def test_a_file_of_the_hub():
    """Its keys about kernels and initialisation change nothing, and none is unknown."""
    hub = {
        "architectures": ["xLSTMForCausalLM"],
        "add_embedding_dropout": False,
        "add_out_norm": True,
        "add_post_blocks_norm": True,
        "add_post_norm": False,
        "add_qk_norm": False,
        "chunkwise_kernel": "chunkwise--triton_xl_chunk",
        "embedding_dim": 4096,
        "hidden_size": 4096,
        "model_type": "xlstm",
        "num_blocks": 32,
        "num_hidden_layers": 32,
        "sequence_kernel": "native_sequence__triton",
        "step_kernel": "triton",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_bias": False,
    }
    (dialect,) = ARCHITECTURE.dialects
    config = dialect.read_config(hub)
    assert config == XLSTMConfig() and config.mlp_size == 10944 and dialect.unknown_keys(hub) == {}
