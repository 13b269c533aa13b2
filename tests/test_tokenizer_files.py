"""Tokenizers as files: where they lie, what is read, what is written."""

import json
import os

import pytest
import tokenizer_kinds
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer as RawTokenizer

from ssmkit.text._tokenizer import Tokenizer


TEXT = "naïve 😀 text"
BYTE_LEVEL = Tokenizer(tokenizer_kinds.byte_level())


def test_files(tmp_path):
    path = tmp_path / "tokenizer.json"
    BYTE_LEVEL.save(path)
    for source in (path, tmp_path, str(path), str(tmp_path)):
        assert Tokenizer.from_file(source).encode(TEXT) == BYTE_LEVEL.encode(TEXT)
    (tmp_path / "copy").mkdir()
    BYTE_LEVEL.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == path.read_bytes()


def test_truncation_and_padding_of_a_file_are_left_out(tmp_path):
    raw = RawTokenizer.from_str(BYTE_LEVEL._raw.to_str())
    raw.enable_truncation(2)
    raw.enable_padding(length=50)
    raw.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_file(tmp_path).encode(TEXT) == BYTE_LEVEL.encode(TEXT)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer.from_file(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):  # it is not looked for on the hub
        Tokenizer.from_file("tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer.json"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_only_regular_files_are_read(tmp_path, name):
    """A pipe would never end."""
    os.mkfifo(tmp_path / name)
    for source in (tmp_path, tmp_path / name, "/dev/zero"):
        with pytest.raises(OSError, match="Not a regular file"):
            Tokenizer.from_file(source)


def test_sizes_are_limited(tmp_path):
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(2**30)
    with pytest.raises(OSError, match="Larger than 268,435,456 bytes"):
        Tokenizer.from_file(tmp_path)


def test_an_id_out_of_all_proportion_is_not_written(tmp_path):
    """The library would list all ids below it."""
    content = json.loads(tokenizer_kinds.word_level().to_str())
    content["model"]["vocab"]["far"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer.from_file(tmp_path)
    assert tokenizer.decode(tokenizer.encode("far to")) == "far to"
    with pytest.raises(ValueError, match="cannot be written: .* an id of 4294967295"):
        tokenizer.save(tmp_path / "copy.json")


# On the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A model's folder there, and what was asked for."""
    calls = []
    folder = tmp_path / "hub"
    folder.mkdir()

    def snapshot_download(repo_id, *, allow_patterns, **keywords):
        calls.append((repo_id, keywords))
        assert {"tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "tokenizer_config.json"} <= {*allow_patterns}
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return folder, calls


def test_a_model_on_the_hub(hub):
    folder, calls = hub
    with pytest.raises(FileNotFoundError, match="no tokenizer at EleutherAI/gpt-neox-20b"):
        Tokenizer.from_file("EleutherAI/gpt-neox-20b")
    BYTE_LEVEL.save(folder)
    assert Tokenizer.from_file("EleutherAI/gpt-neox-20b").encode(TEXT) == BYTE_LEVEL.encode(TEXT)
    Tokenizer.from_file("EleutherAI/gpt-neox-20b", revision="v1")
    assert [keywords for _, keywords in calls] == [{}, {}, {"revision": "v1"}]


def test_a_revision_of_a_local_path(hub, tmp_path):
    BYTE_LEVEL.save(tmp_path)
    with pytest.raises(ValueError, match="`revision` names a version of a model on the hub"):
        Tokenizer.from_file(tmp_path, revision="v1")


@pytest.mark.parametrize("source", [None, 3, "x" * 5000, "\0", "", "a//b"])
def test_what_names_no_place(source):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Tokenizer.from_file(source)
    assert len(str(error.value)) < 1000


# SentencePiece


@pytest.fixture(scope="module", params=tokenizer_kinds.SENTENCEPIECE)
def pair(request, tmp_path_factory):
    """A tokenizer, and what the library itself makes of its file."""
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    model_type, options = tokenizer_kinds.SENTENCEPIECE[request.param]
    model = tokenizer_kinds.train_sentencepiece(path, model_type, **options)
    return Tokenizer.from_file(path), model, path, request.param


@given(text=st.one_of(st.text("To bent  ▁é日😀[INST]ﬁ\n\t"), st.text()))
@settings(max_examples=40, deadline=None)
def test_a_sentencepiece_model_gives_its_librarys_ids(pair, text):
    tokenizer, model, *_ = pair
    ids = tokenizer.encode(text)
    assert ids == model.EncodeAsIds(text)
    assert tokenizer.decode(ids) == model.DecodeIds(ids)
    assert "".join(tokenizer.decode_stream(ids)) == tokenizer.decode(ids)


def test_the_rest_of_a_sentencepiece_model(pair, tmp_path):
    tokenizer, model, path, name = pair
    assert tokenizer.vocab_size == model.GetPieceSize()
    assert tokenizer.token_id("no such piece") is None
    assert tokenizer.token_id(model.IdToPiece(5)) == 5
    assert tokenizer.decode([*tokenizer.encode("be"), tokenizer.vocab_size, 2**31, 2**32 - 1]) == "be"
    text = "To be, or not to be"
    lengths = map(tokenizer.byte_length, tokenizer.encode(text))
    assert sum(lengths) == len(text) + (name != "no dummy prefix")  # the space before the first word
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == path.read_bytes()
    assert Tokenizer.from_file(tmp_path).encode(text) == tokenizer.encode(text)
    with pytest.raises(ValueError, match="name it tokenizer.model"):
        tokenizer.save(tmp_path / "tokenizer.json")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model as Llama's: ids 1 and 2 begin and end a text."""
    path = tmp_path_factory.mktemp("llama") / "tokenizer.model"
    model_type, options = tokenizer_kinds.SENTENCEPIECE["bpe as Llama's"]
    return path, tokenizer_kinds.train_sentencepiece(path, model_type, **options).EncodeAsIds("to be")


@pytest.mark.parametrize(
    ("name", "content", "begin", "end"),
    [
        ("tokenizer.model", None, [], []),
        ("tokenizer.model", {"bos_token": "<s>"}, [], []),
        ("tokenizer.model", {"add_bos_token": True}, [1], []),
        ("tokenizer.model", {"add_bos_token": True, "add_eos_token": True}, [1], [2]),
        ("tokenizer.model.v3", None, [1], []),
        ("tokenizer.model.v3", {"add_bos_token": False}, [], []),
    ],
)
def test_begin_and_end_of_a_sentencepiece_model(llama, tmp_path, name, content, begin, end):
    """Settings say so, as to HF transformers; Mistral's models have the beginning."""
    path, ids = llama
    (tmp_path / name).write_bytes(path.read_bytes())
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    (tmp_path / "again").mkdir()
    Tokenizer.from_file(tmp_path).save(tmp_path / "again")
    for source in (tmp_path, tmp_path / name, tmp_path / "again"):
        tokenizer = Tokenizer.from_file(source)
        assert tokenizer.encode("to be") == [*begin, *ids, *end]
        assert tokenizer.encode("to be", special=False) == ids
        assert tokenizer.decode(tokenizer.encode("to be")) == "to be"


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000, '{"add_bos_token": "yes"}', "\xff"])
def test_settings_that_cannot_be_read(llama, tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(llama[0].read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="tokenizer_config.json"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"{}", None])
def test_a_damaged_sentencepiece_model(llama, tmp_path, content):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(llama[0].read_bytes()[:2000] if content is None else content)
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        Tokenizer.from_file(path)


def test_a_tokenizer_json_is_preferred(llama, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(llama[0].read_bytes())
    BYTE_LEVEL.save(tmp_path)
    assert Tokenizer.from_file(tmp_path).encode(TEXT) == BYTE_LEVEL.encode(TEXT)


def test_without_the_sentencepiece_library(llama, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'ssmkit\[sentencepiece\]'"):
        Tokenizer.from_file(llama[0])
