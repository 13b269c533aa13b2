"""Models whose checkpoints tests write, change and compare."""

import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ssmkit.checkpoint import save_pretrained
from ssmkit.checkpoint._torch_pickle import write_torch_pickle
from ssmkit.models import Mamba2, Mamba2Config


SMALL: dict[str, Any] = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 3, "head_dim": 4}


CONFIG = Mamba2Config(**SMALL)


CONFIGS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "padded": {"pad_vocab_size_multiple": 8, "tie_word_embeddings": True},
    "biases": {"use_bias": True, "use_conv_bias": False},
    "groups": {"n_groups": 2, "conv_kernel": 3, "chunk_size": 8},
    "limits": {"time_step_limit": (0.001, math.inf), "residual_in_fp32": False, "time_step_min": 0.01},
    "tokens": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None},
    "epsilon": {"layer_norm_epsilon": 1e-6},
    "skip per channel": {"D_has_hdim": True},
}


def config_of(name: str) -> Mamba2Config:
    return Mamba2Config(**SMALL, **CONFIGS[name])


def random_model(config=CONFIG, dtype=jnp.float32) -> Mamba2:
    """No two arrays alike, and none constant."""
    model = Mamba2(config, key=jax.random.key(0), dtype=dtype)
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), x.dtype), model)


def assert_same(a, b):
    """Equal structure, configuration, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def edit_config(folder: pathlib.Path, **changes):
    """Set keys of `config.json`; `...` removes one."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_weights(folder: pathlib.Path, **changes):
    """Set tensors of `model.safetensors`; `None` removes one. `__` stands for a dot."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | {name.replace("__", "."): value for name, value in changes.items()}
    safetensors.numpy.save_file({name: value for name, value in tensors.items() if value is not None}, path)


# Containers


def shard(saved: pathlib.Path, suffix=".safetensors") -> pathlib.Path:
    """Split the weights in two; returns the index."""
    tensors = safetensors.numpy.load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    stem = {".safetensors": "model", ".bin": "pytorch_model"}[suffix]
    write = {
        ".safetensors": safetensors.numpy.save_file,
        ".bin": lambda tensors, path: write_torch_pickle(path, tensors),
    }
    places = {}
    for number in (1, 2):
        part = dict(list(tensors.items())[number - 1 :: 2])
        name = f"{stem}-0000{number}-of-00002{suffix}"
        write[suffix](part, saved / name)
        places |= dict.fromkeys(part, name)
    index = saved / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.fixture
def saved(tmp_path):
    """A folder with a random model."""
    save_pretrained(random_model(), tmp_path / "model")
    return tmp_path / "model"
