"""Tokenizers on the command line: special tokens, where they come from, what a broken one looks like."""

import json
import math

import jax
import pytest
import tokenizer_kinds
from tokenizers import processors

import ssmkit
from ssmkit.checkpoint import save_pretrained
from ssmkit.cli import main
from ssmkit.models import Mamba2, Mamba2Config
from ssmkit.text._files import COMPANIONS
from ssmkit.text._tokenizer import Tokenizer


TEXT = "To be, or not to be.\n"
BEGIN = "!"


@pytest.fixture(scope="module")
def model():
    config = Mamba2Config(
        vocab_size=400, hidden_size=8, num_hidden_layers=1, state_size=4, head_dim=4, tie_word_embeddings=True
    )
    return Mamba2(config, key=jax.random.key(0))


@pytest.fixture(scope="module")
def plain():
    """A tokenizer that adds nothing."""
    return Tokenizer(tokenizer_kinds.byte_level())


@pytest.fixture
def folder(model, plain, tmp_path, monkeypatch):
    """The model beside a tokenizer that puts `!` before every text."""
    monkeypatch.setattr("ssmkit.cli._models.enable_compilation_cache", lambda: None)
    monkeypatch.setattr("ssmkit.cli._generate.enable_compilation_cache", lambda: None)
    save_pretrained(model, tmp_path / "model")
    raw = tokenizer_kinds.byte_level()
    raw.add_special_tokens([BEGIN])
    raw.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, raw.token_to_id(BEGIN))]
    )
    raw.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model"


@pytest.fixture
def run(capfd):
    """Run a command: exit code, standard output, standard error, also what is written beneath Python."""

    def run(*words):
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def test_generate_follows_the_tokenizer(run, folder, model, plain):
    begin, tokens = plain.token_id(BEGIN), plain.encode("To be")
    for words, prompt in (([], [begin, *tokens]), (["--no-special-tokens"], tokens)):
        code, out, err = run("generate", "To be", "--model", folder, "--max-new-tokens", "8", "-t", "0", *words)
        expected = plain.decode([*tokens, *ssmkit.stream(model, prompt, 8)])
        assert (code, out.rstrip("\n")) == (0, expected.rstrip("\n"))
        assert f"prompt       {len(prompt)} tokens" in err


def test_score_follows_the_tokenizer(run, folder, model, plain, tmp_path):
    """With a beginning, the whole text is predicted; without, all but its first token."""
    begin, tokens = plain.token_id(BEGIN), plain.encode(TEXT)
    (tmp_path / "text").write_text(TEXT)
    first = len(plain.decode(tokens[:1]))
    for words, scored, size in (
        ([], [begin, *tokens], len(TEXT)),
        (["--no-special-tokens"], tokens, len(TEXT) - first),
    ):
        code, out, _ = run("score", tmp_path / "text", "--model", folder, "--json", *words)
        found, expected = json.loads(out), ssmkit.score(model, scored)
        assert code == 0 and (found["bytes"], found["tokens"]) == (size, len(scored) - 1)
        assert found["nats_per_token"] == expected.nats_per_token
        assert math.isclose(found["bits_per_byte"], expected.nats / math.log(2) / size, rel_tol=1e-12)


def test_the_first_word_of_a_text_has_no_space(run, folder, tmp_path):
    (tmp_path / "text").write_text("be a bed")
    (tmp_path / "words").mkdir()
    raw = tokenizer_kinds.byte_fallback()
    raw.save(str(tmp_path / "words" / "tokenizer.json"))
    code, out, _ = run("score", tmp_path / "text", "--model", folder, "--json", "--tokenizer", tmp_path / "words")
    assert raw.encode("be a bed").tokens[:2] == ["▁", "b"]  # the space that nobody wrote
    assert (code, json.loads(out)["bytes"]) == (0, len("be a bed"))


def test_a_tokenizer_on_the_hub(run, folder, plain, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo_id, *, allow_patterns):
        asked.append(repo_id)
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    (tmp_path / "hub").mkdir()
    plain.save(tmp_path / "hub")
    code, out, err = run(
        "generate", "To be", "--model", folder, "--max-new-tokens", "0", "--tokenizer", "someone/words"
    )
    assert code == 0 and asked == ["someone/words"] and f" {len(plain.encode('To be'))} tokens\nnew" in err


def test_a_sentencepiece_model_beside_a_model(run, folder):
    model_type, options = tokenizer_kinds.SENTENCEPIECE["unigram with bytes"]
    (folder / "tokenizer.json").unlink()
    library = tokenizer_kinds.train_sentencepiece(folder / "tokenizer.model", model_type, **options)
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    code, out, err = run("generate", "To be", "--model", folder, "--max-new-tokens", "0")
    assert code == 0 and out.startswith("To be")
    assert f" {len(library.EncodeAsIds('To be')) + 1} tokens\nnew" in err


@pytest.mark.parametrize(
    "part",
    [
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(o+)+$"}, "behavior": "Isolated", "invert": False}},
        {"model": {"type": "WordLevel", "vocab": {"h": 0}, "unk_token": "<unk>"}},
    ],
    ids=["any text", "this text", "unknown words"],
)
@pytest.mark.parametrize("command", ["generate", "score"])
def test_a_broken_tokenizer_is_one_line(run, folder, command, part, tmp_path):
    """Where the library panics, it writes lines of its own on standard error; they are not shown."""
    words = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}}
    (folder / "tokenizer.json").write_text(json.dumps(words | part))
    text = "T" + "o" * 60 + " be"
    (tmp_path / "text").write_text(text)
    code, out, err = run(command, text if command == "generate" else tmp_path / "text", "--model", folder)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1


def test_what_lies_beside_a_model_comes_along(run, folder, tmp_path):
    for name in COMPANIONS:
        if name != "tokenizer.json":
            (folder / name).write_text(f"{{}} {name}")
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
    assert run("convert", folder, tmp_path / "there", "--format", "state-spaces")[0] == 0
    assert run("convert", tmp_path / "there", tmp_path / "back")[0] == 0
    for name in (*COMPANIONS, "additional_chat_templates/rag.jinja"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
