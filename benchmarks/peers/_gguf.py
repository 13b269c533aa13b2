"""The same weights in llama.cpp's format, laid out as its converter for Mamba-2 does."""

from pathlib import Path

import gguf
import numpy as np

from .._checkpoint import read_config, read_tensors


_QUANTISED = ("token_embd.weight", "output.weight", "ssm_in.weight", "ssm_out.weight")
_NAMES = {
    "backbone.embeddings.weight": "token_embd.weight",
    "backbone.norm_f.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.norm.weight": "ssm_norm.weight",
    "mixer.out_proj.weight": "ssm_out.weight",
}


def convert(directory: Path, storage: str) -> Path:
    """The GGUF file beside the checkpoint, written if it is not there."""
    path = directory / f"{storage}.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        _write(directory, partial, storage)
        partial.rename(path)
    return path


def _write(directory: Path, path: Path, storage: str) -> None:
    config = read_config(directory)
    groups, inner = config["n_groups"], int(config["expand"] * config["hidden_size"])
    writer = gguf.GGUFWriter(path, "mamba2")
    writer.add_context_length(2**20)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(inner // config["head_dim"])
    writer.add_ssm_group_count(groups)
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    tied = config["tie_word_embeddings"]
    for name, tensor in read_tensors(directory):
        if tied and name == "lm_head.weight":
            continue
        name, tensor = _layout(name, np.asarray(tensor, np.float32), groups)
        if storage == "q8_0" and name.endswith(_QUANTISED):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _layout(name: str, tensor: np.ndarray, groups: int) -> tuple[str, np.ndarray]:
    """llama.cpp's name and shape of a tensor."""
    if name in _NAMES:
        return _NAMES[name], np.ascontiguousarray(tensor)
    layer, _, part = name.removeprefix("backbone.layers.").partition(".")
    if part == "mixer.A_log":
        tensor = -np.exp(tensor)
    if part in ("mixer.A_log", "mixer.D"):
        tensor = tensor[:, None]
    elif part == "mixer.norm.weight":
        tensor = tensor.reshape(groups, -1)
    elif part == "mixer.conv1d.weight":
        tensor = tensor[:, 0]
    return f"blk.{layer}.{_NAMES[part]}", np.ascontiguousarray(tensor)
