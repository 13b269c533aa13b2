"""Files that people take for checkpoints: each is named, with what to do about it."""

import json
import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ssmkit.checkpoint import CheckpointError, describe, from_pretrained, save_pretrained
from ssmkit.models import Mamba2, Mamba2Config


pytestmark = pytest.mark.once


CONFIG = Mamba2Config(vocab_size=11, hidden_size=8, num_hidden_layers=1, state_size=3, head_dim=4)
MODEL = Mamba2(CONFIG, key=jax.random.key(0))
LINEAR = "backbone.layers.0.mixer.in_proj"


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    save_pretrained(MODEL, tmp_path / "model")
    return tmp_path / "model"


def refusal(source: Any) -> str:
    """The message, one line, for each way to load it."""
    with pytest.raises(CheckpointError) as error:
        from_pretrained(source)
    assert len(str(error.value).splitlines()) <= 2
    return str(error.value)


def edit(folder: pathlib.Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_tensors(folder: pathlib.Path, tensors: dict[str, Any], **metadata: str) -> None:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata=metadata or None)


# Adapters.


def test_a_folder_with_an_adapter_alone(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, tmp_path / "adapter_model.safetensors")
    assert "`adapter_config.json`: an adapter such as LoRA, and not a model. Merge it" in refusal(tmp_path)
    assert "an adapter such as LoRA" in refusal(tmp_path / "adapter_model.safetensors")


def test_an_adapter_beside_its_model(saved):
    (saved / "adapter_config.json").write_text("{}")
    assert "holds an adapter (`adapter_config.json`) beside a model" in refusal(saved)


def test_tensors_of_an_adapter(saved):
    prefix = f"base_model.model.{LINEAR}"
    write_tensors(saved, {f"{prefix}.lora_A.weight": np.zeros((2, 8), np.float32)})
    assert f"`{saved / 'model.safetensors'}` holds an adapter such as LoRA, and not a model" in refusal(saved)


# Quantised weights.


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "hqq", "torchao"])
def test_configurations_of_quantised_weights(saved, method):
    edit(saved, quantization_config={"quant_method": method, "bits": 4})
    message = refusal(saved)
    assert f"no quantised weights (method {method}): dequantise them" in message
    with pytest.raises(CheckpointError, match="quantised"):
        describe(saved)


@pytest.mark.parametrize(
    ("value", "method"), [({"load_in_4bit": True}, "bitsandbytes"), ({"bits": 4}, "unknown"), ("int4", "unknown")]
)
def test_configurations_that_do_not_name_the_method(saved, value, method):
    edit(saved, quantization_config=value)
    assert f"(method {method})" in refusal(saved)


@pytest.mark.parametrize(
    ("suffix", "dtype", "what"),
    [
        ("qweight", np.int32, "GPTQ or AWQ"),
        ("weight.absmax", np.uint8, "bitsandbytes"),
        ("weight.quant_state.bitsandbytes__nf4", np.uint8, "bitsandbytes"),
        ("SCB", np.float32, "bitsandbytes"),
        ("weight_packed", np.int32, "compressed-tensors"),
        ("weight_scale", np.float32, "weights quantised to 8 bits"),
        ("weight_scale_inv", np.float32, "weights quantised to 8 bits"),
        ("scales", np.float16, "MLX"),
        ("weight", ml_dtypes.float8_e4m3fn, "weights quantised to 8 bits or less (float8_e4m3fn)"),
        ("weight", np.int8, "weights quantised to 8 bits or less (int8)"),
        ("weight", np.uint8, "weights quantised to 8 bits or less (uint8)"),
    ],
)
def test_tensors_of_quantised_weights(saved, suffix, dtype, what):
    tensors = safetensors.numpy.load_file(saved / "model.safetensors")
    shape = tensors.pop(f"{LINEAR}.weight").shape
    write_tensors(saved, tensors | {f"{LINEAR}.{suffix}": np.zeros(shape, dtype)})
    message = refusal(saved)
    assert what in message and "equantise them with the library that made them" in message


# MLX.


def test_mlx(saved):
    edit(saved, quantization={"group_size": 64, "bits": 4})
    assert "no weights that MLX quantised: dequantise them" in refusal(saved)
    edit(saved, quantization=None)
    tensors = safetensors.numpy.load_file(saved / "model.safetensors")
    conv = "backbone.layers.0.mixer.conv1d.weight"
    write_tensors(saved, tensors | {conv: np.moveaxis(tensors[conv], 2, 1).copy()}, format="mlx")
    assert "holds weights in the layout of MLX. Take the checkpoint" in refusal(saved)
    write_tensors(saved, tensors, format="mlx")
    assert from_pretrained(saved).config == CONFIG


# Other kinds of files.

FILES = {
    "model.gguf": (b"GGUF\x03\0\0\0", "weights in llama.cpp's format (GGUF)"),
    "model-Q4_K_M.GGUF": (b"", "weights in llama.cpp's format (GGUF)"),
    "ggml-model.bin": (b"tjgg\1\0\0\0", "weights in llama.cpp's format (GGUF)"),
    "model.safetensors": (b"GGUF\x03\0\0\0", "weights in llama.cpp's format (GGUF)"),
    "model.onnx": (b"\x08\x07", "a program in the ONNX format"),
    "tf_model.h5": (b"\x89HDF\r\n\x1a\n", "weights of TensorFlow or Keras (HDF5)"),
    "flax_model.msgpack": (b"\x81", "weights of Flax"),
    "weights.npz": (b"PK\x03\x04", "weights of NumPy or MLX"),
    "last.ckpt": (b"PK\x03\x04", "a checkpoint of a trainer"),
    "__0_0.distcp": (b"", "a shard of PyTorch's distributed checkpoints"),
    "pytorch_model.bin": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a pointer of Git LFS in place of the file. Run `git lfs pull`",
    ),
    "consolidated.safetensors": (b"<!DOCTYPE html><html>", "a web page in place of the file"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("configured", [False, True], ids=["alone", "beside a configuration"])
def test_files_by_name_or_content(tmp_path, saved, name, configured):
    content, what = FILES[name]
    folder = saved if configured else tmp_path
    (saved / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    assert refusal(folder / name).startswith(f"`{folder / name}` is {what}")
    with pytest.raises(CheckpointError):
        describe(folder)


@pytest.mark.parametrize("name", ["model.gguf", "model.onnx", "tf_model.h5", "flax_model.msgpack"])
def test_folders_of_such_files(tmp_path, saved, name):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_bytes(FILES[name][0])
    assert f"`{name}`: {FILES[name][1]}" in refusal(tmp_path / "other")
    (saved / "model.safetensors").rename(saved / name)
    message = refusal(saved)
    assert "holds no weights: expected `model.safetensors`" in message and f"`{name}`: {FILES[name][1]}" in message


def test_such_files_beside_a_model_do_no_harm(saved):
    for name in ("model.gguf", "model.onnx", "tf_model.h5"):
        (saved / name).write_bytes(FILES[name][0])
    assert from_pretrained(saved).config == CONFIG


def test_pointers_in_place_of_shards_and_configurations(saved):
    pointer = FILES["pytorch_model.bin"][0]
    tensors = safetensors.numpy.load_file(saved / "model.safetensors")
    (saved / "model.safetensors").rename(saved / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert from_pretrained(saved).config == CONFIG
    (saved / "model-00001-of-00001.safetensors").write_bytes(pointer)
    assert "model-00001-of-00001.safetensors` is a pointer of Git LFS" in refusal(saved)
    (saved / "config.json").write_bytes(pointer)
    assert "config.json` is a pointer of Git LFS" in refusal(saved)


def test_what_the_hub_has_instead(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *arguments, **keywords: str(tmp_path))
    files = ["README.md", "mamba.Q4_K_M.gguf"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repo_id, *, revision: files)
    assert "`mamba.Q4_K_M.gguf`: weights in llama.cpp's format (GGUF)" in refusal("someone/mamba-GGUF")

    def unreachable(*arguments, **keywords):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.list_repo_files", unreachable)
    with pytest.raises(CheckpointError, match="holds no model of a known architecture"):
        describe("someone/mamba-GGUF")


# Weights by another name.


def test_weights_by_another_name_are_listed(saved):
    (saved / "model.safetensors").rename(saved / "ema.safetensors")
    for number in range(24):
        (saved / f"step-{number:02}.pt").touch()
    message = refusal(saved)
    assert message.count("`step-") == 19 and "Found `ema.safetensors`, `step-00.pt`" in message
    assert message.endswith("`step-18.pt` and 5 more: give the path of the one to load.")
    assert from_pretrained(saved / "ema.safetensors").config == CONFIG


def test_shards_and_adapters_without_their_companions(saved):
    (saved / "model.safetensors").rename(saved / "model-00001-of-00002.safetensors")
    (saved / "model-00002-of-00002.safetensors").touch()
    assert (
        "`model-00001-of-00002.safetensors` and 1 more: shards of a model without their index. Put "
        "`model.safetensors.index.json` beside them"
    ) in refusal(saved)
    for path in saved.glob("*.safetensors"):
        path.unlink()
    (saved / "adapter_model.safetensors").touch()
    assert "`adapter_model.safetensors`: an adapter such as LoRA, and not a model" in refusal(saved)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_tensors_of_a_wrapper(saved, prefix):
    tensors = safetensors.numpy.load_file(saved / "model.safetensors")
    write_tensors(saved, {prefix + name: value for name, value in tensors.items()})
    with pytest.raises(CheckpointError, match=f"The names of all tensors begin with `{prefix}`: ") as error:
        from_pretrained(saved)
    assert error.value.problems
