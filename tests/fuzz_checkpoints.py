"""Kinds of files that checkpoints consist of, for the fuzzer."""

import io
import json
import pathlib
import random
import struct
import zipfile

import jax
import numpy as np
import safetensors.numpy
from fuzz import Kind, edited, flipped, json_damage

from ssmkit import from_pretrained, save_pretrained
from ssmkit.checkpoint import describe, open_tensors
from ssmkit.checkpoint._torch_pickle import write_torch_pickle
from ssmkit.models import Mamba, Mamba2, Mamba2Config, MambaConfig


GEOMETRY = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 3, "tie_word_embeddings": True}


def _mamba2(folder: pathlib.Path, format: str = "hf") -> None:
    save_pretrained(Mamba2(Mamba2Config(**GEOMETRY, head_dim=4), key=jax.random.key(0)), folder, format=format)


def _mamba(folder: pathlib.Path, format: str = "hf") -> None:
    save_pretrained(Mamba(MambaConfig(**GEOMETRY), key=jax.random.key(0)), folder, format=format)


def _config(folder: pathlib.Path) -> pathlib.Path:
    _mamba2(folder)
    return folder / "config.json"


def _state_spaces_config(folder: pathlib.Path) -> pathlib.Path:
    _mamba(folder, "state-spaces")
    return folder / "config.json"


def _mamba2_weights(folder: pathlib.Path) -> pathlib.Path:
    _mamba2(folder)
    return folder / "model.safetensors"


def _index(folder: pathlib.Path) -> pathlib.Path:
    """Two shards, one of each container."""
    _mamba2(folder)
    tensors = list(safetensors.numpy.load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    safetensors.numpy.save_file(dict(tensors[::2]), folder / "1.safetensors")
    write_torch_pickle(folder / "2.bin", dict(tensors[1::2]))
    places = {name: ("1.safetensors", "2.bin")[position % 2] for position, (name, _) in enumerate(tensors)}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 3000}, "weight_map": places}))
    return path


def _torch(folder: pathlib.Path) -> pathlib.Path:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_torch_pickle(folder / "x.bin", {"x": array, "y": array, "z": array.astype(np.float16)})
    return folder / "x.bin"


def _read_tensors(path: pathlib.Path) -> None:
    for tensor in open_tensors(path).values():
        tensor.read().sum()


def header_damage(content: bytes, generator: random.Random) -> bytes:
    """A changed copy of a safetensors file: another header, mostly of the right length."""
    if generator.random() < 0.3:
        return flipped(content, generator)
    (length,) = struct.unpack("<Q", content[:8])
    header = edited(json.loads(content[8 : 8 + length]), generator).encode("utf-8", "surrogatepass")
    claimed = len(header) if generator.random() < 0.9 else generator.choice((0, 2**24, 2**40, 2**63, 2**64 - 1))
    return struct.pack("<Q", claimed) + header + content[8 + length :]


OPCODES = (
    *(
        b"(",
        b")",
        b"}",
        b"0",
        b"1",
        b"2",
        b"N",
        b"\x88",
        b"K\xff",
        b"M\xff\xff",
        b"J\xff\xff\xff\x7f",
        b"\x85",
        b"\x86",
    ),
    *(
        b"\x87",
        b"t",
        b"s",
        b"u",
        b"R",
        b"Q",
        b"b",
        b"\x93",
        b"\x94",
        b"q\x00",
        b"h\x00",
        b"h\x01",
        b"r\x00\x00\x00\x7f",
    ),
    *(
        b"]",
        b"a",
        b"e",
        b"l",
        b"d",
        b"\x8f",
        b"\x90",
        b"\x91",
        b"o",
        b"\x81",
        b"\x92",
        b"\x96" + b"\x01" * 8,
        b".",
        b"P0\n",
    ),
    *(
        b"\x8a\xff" + b"\x7f" * 255,
        b"\x8b\xff\xff\xff\x7f",
        b"I" + b"9" * 5000 + b"\n",
        b"L1L\n",
        b"F1e999\n",
        b"X\4\0\0\0long",
    ),
    *(
        b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cos\nsystem\n",
    ),
    *(
        b"h\x00\x86q\x00" * 40,
        b"h\x00\x85q\x00" * 40,
        b")q\x00",
        b"G" + b"\x7f\xf0" + bytes(6),
        b"U\x02hi",
        b"\x8c\x02hi",
    ),
)
"""Instructions of the pickle machine, with arguments."""


def pickle_damage(content: bytes, generator: random.Random) -> bytes:
    """A changed copy of a torch file: another program in a well-formed archive."""
    if generator.random() < 0.3:
        return flipped(content, generator)
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(written, "w") as other:
        for name in archive.namelist():
            member = archive.read(name)
            if name.endswith("data.pkl"):
                for _ in range(generator.choice((1, 1, 2, 5, 30))):
                    place = generator.randrange(len(member) + 1)
                    member = member[:place] + generator.choice(OPCODES) + member[place + generator.randrange(3) :]
            other.writestr(zipfile.ZipInfo(name), member)
    return written.getvalue()


KINDS = [
    Kind("config", _config, from_pretrained, json_damage),
    Kind("state-spaces config", _state_spaces_config, describe, json_damage),
    Kind("index", _index, lambda folder: describe(folder), json_damage),
    Kind("safetensors", _mamba2_weights, from_pretrained, header_damage),
    Kind("torch", _torch, lambda folder: _read_tensors(folder / "x.bin"), pickle_damage),
]
