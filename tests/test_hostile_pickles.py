"""Pickles that would cost more than they are long, and views of more than there is."""

import json
import os
import pickletools
import struct

import pytest
from torch_archives import DICT, archive, constant, one, persistent, tensor

from ssmkit import CheckpointError
from ssmkit.checkpoint import open_tensors
from ssmkit.checkpoint._pickle_machine import _KNOWN
from ssmkit.checkpoint._torch_pickle import open_torch_pickle


pytestmark = pytest.mark.once


# The pickle machine.

NEST = b"N\x85q\x06" + b"h\x06\x86q\x06" * 60  # as text, hashed or compared, 2^60 times as long as it is


def operands(name: str) -> bytes:
    """An argument of an instruction, as it stands in a pickle."""
    (argument,) = [opcode.arg for opcode in pickletools.opcodes if opcode.name == name]
    if argument is None:
        return b""
    long = {
        pickletools.TAKEN_FROM_ARGUMENT1: b"\4aaaa",
        pickletools.TAKEN_FROM_ARGUMENT4: b"\4\0\0\0aaaa",
        pickletools.TAKEN_FROM_ARGUMENT4U: b"\4\0\0\0aaaa",
        pickletools.TAKEN_FROM_ARGUMENT8U: b"\4\0\0\0\0\0\0\0aaaa",
        pickletools.UP_TO_NEWLINE: b"1\n" if "pair" not in argument.name else b"os\nsystem\n",
    }
    return long.get(argument.n, b"\6" + bytes(max(0, argument.n - 1)))


@pytest.mark.parametrize("name", [opcode.name for opcode in pickletools.opcodes])
def test_no_instruction_looks_into_nested_tuples(tmp_path, name):
    """This ends, or it does not: work that doubles sixty times is never done."""
    (code,) = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes if opcode.name == name]
    instruction = code + operands(name)
    functions = (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"}", b"h\x06")
    stacks = [first + b"(" * mark + b"h\x06" * count for first in functions for mark in (0, 1) for count in (1, 2, 4)]
    for stack in [*stacks, functions[0] + b"(" + b"h\x06" * 4 + b"t", functions[0] + b"(" + b"h\x06" * 5 + b"t"]:
        with pytest.raises(CheckpointError) as error:
            open_torch_pickle(archive(tmp_path / "a.bin", b"\x80\x02" + NEST + stack + instruction + b"."))
        assert len(str(error.value)) < 2000
    if name not in _KNOWN:
        assert name in str(error.value)


LONG_TEXT = b"X" + struct.pack("<I", 2000) + b"a" * 2000
AGAIN = {
    "the issue's": (b"\x80\x02)q\x00" + b"h\x00\x86q\x00" * 60 + b"h\x00\x93.", "a name that is no text"),
    "long equal keys": (b"\x80\x02}" + LONG_TEXT + b"Ns.", "a text of 2000 characters"),
    "long tuples as arguments": (
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n(" + b"N" * 100 + b"tR.",
        "arguments that are no short tuple",
    ),
    "long tuples as a shape": (one(tensor(shape=(1,) * 100, strides=(1,) * 100)), "impossible shape"),
    "a long persistent id": (b"\x80\x02(" + b"N" * 100 + b"tQ.", "no storage"),
    "arguments that are a name": (b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + constant("abc") + b"R.", "no short"),
    "a decimal integer": (b"\x80\x02I" + b"9" * 5000 + b"\n.", "instruction INT"),
    "a string with an argument that is not there": (b"\x80\x02\x8d" + b"\xff" * 8, "instruction BINUNICODE8"),
}


@pytest.mark.parametrize("program, message", AGAIN.values(), ids=AGAIN.keys())
def test_what_could_be_repeated_is_bounded(tmp_path, program, message):
    with pytest.raises(CheckpointError, match=message):
        open_torch_pickle(archive(tmp_path / "a.bin", program))


def test_a_storage_is_looked_up_once(tmp_path, monkeypatch):
    """However often a pickle asks for it."""
    looked = []
    program = b"(" + persistent()[1:-1] + b"q\x07" + b"h\x07Q0" * 0
    views = b"".join(constant(f"x{n}") + tensor() for n in range(50))
    read = os.fstat
    monkeypatch.setattr(os, "fstat", lambda file: looked.append(file) or read(file))
    assert program and len(open_torch_pickle(archive(tmp_path / "a.bin", DICT + views + b"u."))) == 50
    assert len(looked) < 10


def test_a_pickle_is_no_larger_than_it_must_be(tmp_path):
    with pytest.raises(CheckpointError, match="describes its tensors in 2,097,153 bytes, and at most 2,097,152"):
        open_torch_pickle(archive(tmp_path / "a.bin", b"}" * (2 << 20) + b"."))


# Views.


@pytest.mark.parametrize(
    "shape, strides", [((7,), (0,)), ((20_000_000, 16), (0, 0)), ((3, 3), (1, 1)), ((2**31, 2**31), (0, 0))]
)
def test_a_tensor_has_no_more_elements_than_its_storage(tmp_path, shape, strides):
    with pytest.raises(CheckpointError, match="elements lies on a storage of 6"):
        open_torch_pickle(archive(tmp_path / "a.bin", one(tensor(shape=shape, strides=strides))))


def test_tensors_that_overlap_take_no_more_than_the_file(tmp_path):
    """One storage of 4 MB under a hundred names would be 400 MB."""
    storage = persistent(count=1_000_000)
    view = tensor(storage, shape=(1_000_000,), strides=(1,))
    views = b"".join(constant(f"x{n}") + view for n in range(100))
    path = archive(tmp_path / "a.bin", DICT + views + b"u.", members={"a/data/0": bytes(4_000_000)}.items())
    with pytest.raises(CheckpointError, match="tensors that overlap: they take 400,000,000 bytes"):
        open_torch_pickle(path)


def test_shapes_that_no_array_can_have(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError):
        for value in open_tensors(path).values():
            value.read()
