"""Files that are whole or absent, and a full disk."""

import errno
import os

import equinox as eqx
import numpy as np
import pytest
import safetensors.numpy
from damage import full_disk

from ssmkit._files import replacing
from ssmkit._text import Tokenizer


def through_equinox(path):
    with open(path, "wb") as file:
        eqx.tree_serialise_leaves(file, {"weight": np.zeros(10_000)})


WRITERS = {
    "python": lambda path: path.write_bytes(bytes(10_000)),
    "numpy": lambda path: np.save(path.open("wb"), np.zeros(10_000)),
    "equinox": through_equinox,
    "safetensors": lambda path: safetensors.numpy.save_file({"weight": np.zeros(10_000)}, path),
    "tokenizers": lambda path: Tokenizer.train(["a text"], 256).save(path),
}


@pytest.mark.parametrize("library", WRITERS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that could not be flushed
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, library):
    path = tmp_path / "file.bin"
    path.write_text("as it was")
    with full_disk(1000), pytest.raises(OSError) as caught, replacing(path) as temporary:
        WRITERS[library](temporary)
    assert caught.value.filename == str(path)
    assert caught.value.errno in (errno.EFBIG, errno.EIO) and caught.value.strerror
    assert os.listdir(tmp_path) == ["file.bin"] and path.read_text() == "as it was"


def test_what_is_no_refusal_of_the_system_passes(tmp_path):
    path = tmp_path / "file.bin"
    with pytest.raises(KeyError, match="mine"), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError("mine")
    assert not os.listdir(tmp_path)


def test_what_a_killed_process_left_is_replaced(tmp_path):
    path = tmp_path / "file.bin"
    (tmp_path / "file.bin.partial").symlink_to(tmp_path / "elsewhere")
    with replacing(path) as temporary:
        temporary.write_text("whole")
    assert os.listdir(tmp_path) == ["file.bin"] and path.read_text() == "whole"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError) as caught, replacing(tmp_path / "file.bin") as temporary:
            temporary.write_text("x")
    finally:
        tmp_path.chmod(0o700)
    assert caught.value.filename == str(tmp_path / "file.bin")
