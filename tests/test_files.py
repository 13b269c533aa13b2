"""Files that are whole or absent, and a full disk."""

import errno
import os

import equinox as eqx
import jax
import numpy as np
import pytest
import safetensors.numpy
from damage import full_disk

import ssmkit
from ssmkit._files import replacing, replacing_files, replacing_folder
from ssmkit.models import Mamba2, Mamba2Config
from ssmkit.text._chat import ChatFormat
from ssmkit.text._tokenizer import Tokenizer


def through_equinox(path):
    with open(path, "wb") as file:
        eqx.tree_serialise_leaves(file, {"weight": np.zeros(10_000)})


def through_numpy(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(10_000))


WRITERS = {
    "python": lambda path: path.write_bytes(bytes(10_000)),
    "numpy": through_numpy,
    "equinox": through_equinox,
    "safetensors": lambda path: safetensors.numpy.save_file({"weight": np.zeros(10_000)}, path),
    "tokenizers": lambda path: Tokenizer.train(["a text"], 256).save(path),
}


@pytest.mark.parametrize("library", WRITERS)
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


def test_what_a_file_held_is_kept_where_asked(tmp_path):
    path, kept = tmp_path / "file.bin", tmp_path / "kept.bin"
    for content in ("first", "second", "third"):
        with replacing(path, keep=kept) as temporary:
            temporary.write_text(content)
    assert (path.read_text(), kept.read_text()) == ("third", "second")
    with pytest.raises(KeyError), replacing(path, keep=kept) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert (path.read_text(), kept.read_text()) == ("third", "second") and len(os.listdir(tmp_path)) == 2


def test_several_files_are_replaced_together(tmp_path):
    (tmp_path / "a").write_text("as it was")
    (tmp_path / "other").write_text("stays")
    for names in ("a",), ("a", "b"):
        with pytest.raises(OSError) as caught, replacing_files(tmp_path, ("a", "b")) as paths:
            for name in names:
                paths[name].write_text("new")
            if len(names) == 1:  # `b` was not written
                continue
            raise OSError(errno.EIO, "broken", "x")
        assert caught.value.filename == ("x" if len(names) == 2 else str(tmp_path / "b"))
        assert (tmp_path / "a").read_text() == "as it was" and sorted(os.listdir(tmp_path)) == ["a", "other"]
    with replacing_files(tmp_path, ("a", "b")) as paths:
        paths["a"].write_text("new")
        paths["b"].write_text("too")
    found = {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)}
    assert found == {"a": "new", "b": "too", "other": "stays"}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "new" / "folder"
    for content in ("first", "second"):
        with replacing_folder(target) as folder:
            (folder / content).write_text(content)
        assert os.listdir(target) == [content]
    with pytest.raises(KeyError), replacing_folder(target) as folder:
        (folder / "third").write_text("third")
        raise KeyError
    assert os.listdir(target) == ["second"] and os.listdir(target.parent) == ["folder"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_are_as_readable_as_the_umask_says(tmp_path, mask):
    """Whatever a library that writes them, or a temporary folder, would make of them."""

    def private(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        path.chmod(0o600)

    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a") as path:
            private(path)
        with replacing_files(tmp_path, ["b"]) as paths:
            private(paths["b"])
        with replacing_folder(tmp_path / "c") as folder:
            private(folder / "d")
    finally:
        os.umask(before)
    files = (tmp_path / "a", tmp_path / "b", tmp_path / "c" / "d")
    assert [path.stat().st_mode & 0o777 for path in files] == [0o666 & ~mask] * 3
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o777 & ~mask


# Models.


@pytest.fixture(scope="module")
def model():
    config = Mamba2Config(vocab_size=260, hidden_size=8, num_hidden_layers=1, state_size=4, head_dim=4)
    return Mamba2(config, key=jax.random.key(0))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format, name", [("hf", "model.safetensors"), ("state-spaces", "pytorch_model.bin")])
@pytest.mark.parametrize("bytes_left", [100, 8000])  # for not even the configuration, for a part of the weights
def test_saving_on_a_full_disk_loses_nothing(model, tmp_path, format, name, bytes_left):
    ssmkit.save_pretrained(model, tmp_path, format=format)
    before = contents(tmp_path)
    other = eqx.tree_at(lambda m: m.embedding.weight, model, replace_fn=lambda x: x + 1)
    with full_disk(bytes_left), pytest.raises(OSError) as caught:
        ssmkit.save_pretrained(other, tmp_path, format=format)
    assert caught.value.filename == str(tmp_path / (name if bytes_left > 1000 else "config.json"))
    assert caught.value.strerror
    assert contents(tmp_path) == before and len(os.listdir(tmp_path)) == 2


def test_a_tokenizer_is_saved_with_its_model(model, tmp_path):
    """Both or neither."""
    tokenizer = Tokenizer.train(["a text"], 260)
    ssmkit.save_pretrained(model, tmp_path / "both", tokenizer=tokenizer)
    assert Tokenizer.from_file(tmp_path / "both").encode("a text") == tokenizer.encode("a text")
    size = (tmp_path / "both" / "tokenizer.json").stat().st_size
    longer = Tokenizer.train([" ".join(map(str, range(5000)))], 5000)
    before = contents(tmp_path / "both")
    with full_disk(max(size, 40_000)), pytest.raises(OSError) as caught:
        ssmkit.save_pretrained(model, tmp_path / "both", tokenizer=longer)
    assert caught.value.filename == str(tmp_path / "both" / "tokenizer.json")
    assert contents(tmp_path / "both") == before


@pytest.mark.parametrize("format", ["hf", "state-spaces"])
def test_a_chat_template_is_saved_with_its_model(model, tmp_path, format):
    """With the special tokens that it names."""
    chat = ChatFormat({"default": "{{ eos_token }}"}, {"eos_token": "</s>"})
    tokenizer = Tokenizer(Tokenizer.train(["a text"], 260)._raw, chat)
    ssmkit.save_pretrained(model, tmp_path, format=format, tokenizer=tokenizer)
    again = Tokenizer.from_file(tmp_path)
    assert (again.chat_template, again.special_tokens) == ("{{ eos_token }}", {"eos_token": "</s>"})
    assert again.apply_chat_template([{"role": "user", "content": ""}]) == "</s>"
    assert {*tokenizer.files()} < {*os.listdir(tmp_path)}


def test_exporting_to_a_full_disk_leaves_what_was_there(model, tmp_path):
    ssmkit.save_exported(model, tmp_path / "artefact", lengths=(16,))
    before = contents(tmp_path)
    with full_disk(1000), pytest.raises(OSError) as caught:
        ssmkit.save_exported(model, tmp_path / "artefact", lengths=(16,))
    assert caught.value.filename == str(tmp_path / "artefact") and caught.value.strerror
    assert contents(tmp_path) == before and os.listdir(tmp_path) == ["artefact"]


def test_a_companion_that_is_missing_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        ssmkit.save_exported(model, tmp_path / "artefact", lengths=(16,), beside=[tmp_path / "nowhere.json"])
    assert not os.listdir(tmp_path)
