"""Torch's zip files without torch: a real one, our own, and hostile ones."""

import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from damage import refused
from torch_archives import DICT, FLOATS, archive, constant, one, persistent, tensor

from ssmkit.checkpoint import CheckpointError
from ssmkit.checkpoint._torch_pickle import open_torch_pickle, write_torch_pickle


GOLDEN = pathlib.Path(__file__).parent / "golden" / "torch.bin"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
EXPECTED = {
    "weight": np.arange(6, dtype=np.float32).reshape(3, 2),
    "bias": np.arange(3, dtype=np.float32),
    "tied": np.arange(6, dtype=np.float32).reshape(3, 2),
    "parameter": np.full((2,), 7, np.float32),
    "transposed": BASE.T,
    "window": BASE[1:, 2:4],
    "expanded": np.broadcast_to(BASE[1:2], (3, 6)),
    "scalar": np.array(0.5),
    "empty": np.zeros((0, 4), np.float32),
    "half": np.arange(5).astype(np.float16),
    "brain": np.arange(5).astype(ml_dtypes.bfloat16),
    "long": np.arange(5),
    "bool": np.array([True, False]),
}


def test_reads_a_file_that_torch_wrote():
    tensors = open_torch_pickle(GOLDEN)
    assert list(tensors) == list(EXPECTED)
    for name, expected in EXPECTED.items():
        read = tensors[name].read()
        assert read.dtype == expected.dtype == tensors[name].dtype
        assert read.shape == expected.shape == tensors[name].shape
        assert not read.flags.writeable or read.size == 0
        np.testing.assert_array_equal(read, expected)
    assert tensors["tied"] == tensors["weight"]


def test_reads_what_it_writes(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    arrays = {name: np.ascontiguousarray(array) for name, array in EXPECTED.items()}
    arrays["tied"] = arrays["weight"]
    write_torch_pickle(path, arrays)
    tensors = open_torch_pickle(path)
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].read(), array)
        assert tensors[name].read().dtype == array.dtype
        assert tensors[name].offset % 64 == 0
    assert tensors["tied"] == tensors["weight"]
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert len([name for name in file.namelist() if "/data/" in name]) == len(arrays) - 1


def test_writes_the_same_bytes_twice(tmp_path):
    for name in ("a.bin", "b.bin"):
        write_torch_pickle(tmp_path / name, {"x": BASE})
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_cannot_write_a_dtype_that_torch_lacks(tmp_path):
    with pytest.raises(CheckpointError, match="`x`.*uint32"):
        write_torch_pickle(tmp_path / "a.bin", {"x": np.zeros(3, np.uint32)})


def test_the_hand_made_file_is_valid(tmp_path):
    assert open_torch_pickle(archive(tmp_path / "a.bin", one(tensor())))["x"].shape == (3, 2)


class _Hostile:
    path: pathlib.Path

    def __reduce__(self):
        return (open, (str(_Hostile.path), "w"))


def test_executes_nothing(tmp_path):
    _Hostile.path = tmp_path / "executed"
    for protocol in (2, 3, 4, 5):
        path = archive(tmp_path / "a.bin", pickle.dumps({"x": _Hostile()}, protocol))
        with pytest.raises(CheckpointError, match=r"asks for `_?io.open`"):
            open_torch_pickle(path)
    assert not _Hostile.path.exists()


HOSTILE = {
    "an unknown global": (one(b"cbuiltins\neval\n"), "builtins.eval"),
    "a torch global": (one(b"ctorch._utils\n_rebuild_tensor_v3\n"), "torch._utils._rebuild_tensor_v3"),
    "a list": (b"\x80\x02].", "EMPTY_LIST"),
    "no dictionary": (b"\x80\x02" + tensor() + b".", "must hold a dictionary"),
    "a number": (one(constant(3)), "`x`: expected a tensor, got int"),
    "a dictionary inside": (one(b"}"), "`x`: expected a tensor, got dict"),
    "negative strides": (one(tensor(strides=(-2, 1))), "not negative"),
    "a negative offset": (one(tensor(offset=-1)), "not negative"),
    "a negative shape": (one(tensor(shape=(-3, 2))), "not negative"),
    "an absurd shape": (one(tensor(shape=(2**40, 2**40))), "reaches element"),
    "an integer of many bits": (one(tensor(shape=(2**4000,), strides=(0,))), "not negative"),
    "an offset past the end": (one(tensor(offset=1)), "reaches element 6 of a storage of 6"),
    "strides past the end": (one(tensor(strides=(3, 1))), "reaches element 7"),
    "more strides than axes": (one(tensor(strides=(2, 1, 1))), "impossible shape"),
    "too many axes": (one(tensor(shape=(1,) * 80, strides=(1,) * 80)), "impossible shape"),
    "booleans as a shape": (one(tensor(shape=(True, True))), "not negative"),
    "a lazy negation": (one(tensor(rest=b"\x89}\x88")), "lazy negation"),
    "a storage longer than its member": (one(tensor(persistent(count=7))), "does not lie inside the file"),
    "an absurd storage": (one(tensor(persistent(count=2**62))), "does not lie inside the file"),
    "a storage that is not there": (one(tensor(persistent(key="../0"))), "KeyError"),
    "a persistent id of another kind": (one(tensor(persistent(kind="module"))), "no storage"),
    "a persistent id without a dtype": (one(tensor(persistent(storage=b"N"))), "no storage"),
    "a persistent id that is no tuple": (one(tensor(b"K\x03Q")), "damaged"),
    "a tensor without a storage": (one(tensor(b"N")), "needs a storage"),
    "a call of a dtype": (one(FLOATS + b")R"), "cannot be called"),
    "names that are no text": (DICT + b"K\x01" + tensor() + b"u.", "keys are not names"),
    "an unbalanced stack": (b"\x80\x02ccollections\nOrderedDict\n)RN.", "damaged"),
    "an empty stack": (b"\x80\x02.", "damaged"),
    "no end": (DICT, "damaged"),
    "an unknown memo": (b"\x80\x02h\x05.", "KeyError"),
    "an enormous memo index": (b"\x80\x02Nr\xff\xff\xff\xff0.", "instruction POP"),
    "an enormous string": (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "damaged"),
    "an enormous bytearray": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x00.", "damaged"),
    "deep nesting": (b"\x80\x02N" + b"\x85" * 200_000 + b".", "must hold a dictionary"),
    "deep nesting as a name": (DICT + b"N" + b"\x85" * 200_000 + b"Nu.", "keys are not names"),
    "garbage": (bytes(range(256)), "damaged"),
    "nothing": (b"", "damaged"),
}


@pytest.mark.parametrize("program, message", HOSTILE.values(), ids=HOSTILE.keys())
def test_refuses_hostile_pickles(tmp_path, program, message):
    with pytest.raises(CheckpointError, match=message):
        open_torch_pickle(archive(tmp_path / "a.bin", program))


def test_refuses_other_containers(tmp_path):
    program = one(tensor())
    path = tmp_path / "a.bin"
    with pytest.raises(CheckpointError, match="compressed"):
        open_torch_pickle(archive(path, program, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="big-endian"):
        open_torch_pickle(archive(path, program, members={"a/byteorder": b"big"}.items()))
    with pytest.raises(CheckpointError, match="expected one `data.pkl`, got 2"):
        open_torch_pickle(archive(path, program, members={"b/data.pkl": program}.items()))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="expected one `data.pkl`, got 0"):
        open_torch_pickle(path)
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    with pytest.raises(CheckpointError, match="legacy"):
        open_torch_pickle(path)
    path.write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="no zip archive"):
        open_torch_pickle(path)
    with pytest.raises(CheckpointError, match="No such file"):
        open_torch_pickle(tmp_path / "missing.bin")
    with pytest.raises(CheckpointError, match="directory"):
        open_torch_pickle(tmp_path)


def test_truncated_or_damaged_files_load_or_raise_checkpoint_error(tmp_path):
    path = tmp_path / "a.bin"
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_torch_pickle(path, {"x": array, "y": array})
    size = path.stat().st_size
    assert refused(path, open_torch_pickle, flips=1) > size


def test_a_file_that_shrank_since_it_was_opened(tmp_path):
    path = tmp_path / "a.bin"
    write_torch_pickle(path, {"x": np.zeros(10_000, np.float32)})
    opened = open_torch_pickle(path)["x"]
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be mapped"):
        opened.read()
