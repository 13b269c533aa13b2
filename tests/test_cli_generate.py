"""`ssmkit generate`: the tokens of the library, as a text on standard output."""

import io
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from command_line import TEXT, assert_one_line

import ssmkit
from ssmkit.checkpoint import from_pretrained
from ssmkit.cli import _generate, _models
from ssmkit.text._tokenizer import Tokenizer


pytestmark = pytest.mark.usefixtures("own_cache")


# generate


def test_generate(run, checkpoint):
    """Prompt and continuation on standard output, statistics elsewhere; the same tokens as the library's."""
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    prompt = tokenizer.encode("To be")
    words = ("generate", "To be", "--model", checkpoint, "--max-new-tokens", "24")

    code, out, err = run(*words, "--temperature", "0")
    expected = tokenizer.decode([*prompt, *ssmkit.stream(model, prompt, 24)])
    assert (code, out.rstrip("\n")) == (0, expected.rstrip("\n"))
    assert out.endswith("\n")
    assert f"prompt       {len(prompt)} tokens\nnew          24 tokens\nfirst after" in err and "tokens/s" in err

    key = jax.random.key(5)
    sampler = ssmkit.Sampler(1.5, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.1)
    expected = tokenizer.decode([*prompt, *ssmkit.stream(model, prompt, 24, sampler, key=key)])
    filters = ("--top-k", "20", "--top-p", "0.9", "--min-p", "0.01", "--repetition-penalty", "1.1")
    code, out, err = run(*words, "--seed", "5", "-t", "1.5", *filters)
    assert (code, out.rstrip("\n")) == (0, expected.rstrip("\n"))
    assert "seed         5\n" in err


def test_generate_streams(run, checkpoint, monkeypatch):
    pieces = []
    monkeypatch.setattr(_generate, "_write", pieces.append)
    assert run("generate", "To be", "--model", checkpoint, "--max-new-tokens", "24", "--temperature", "0")[0] == 0
    assert pieces[0] == "To be" and len(pieces) > 3


def test_generate_nothing(run, checkpoint):
    assert run("generate", "To", "--model", checkpoint, "--max-new-tokens", "0")[:2] == (0, "To\n")


def test_penalty_without_randomness(run, checkpoint):
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    prompt = tokenizer.encode("To be")
    sampler = ssmkit.Sampler(top_k=1, repetition_penalty=1.5)
    expected = list(ssmkit.stream(model, prompt, 24, sampler, key=jax.random.key(0)))
    assert expected != list(ssmkit.stream(model, prompt, 24))
    words = ("generate", "To be", "--model", checkpoint, "--max-new-tokens", "24", "--temperature", "0")
    code, out, err = run(*words, "--repetition-penalty", "1.5")
    assert (code, out.rstrip("\n")) == (0, tokenizer.decode(prompt + expected).rstrip("\n"))


def test_stop_token_is_not_written(run, checkpoint):
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    prompt, key = tokenizer.encode("To be"), jax.random.key(5)
    tokens = list(ssmkit.stream(model, prompt, 100, ssmkit.Sampler(1.5), key=key))
    texts = [tokenizer.decode([token]) for token in tokens]
    index = next(i for i in range(5, 100) if tokenizer.encode(texts[i]) == [tokens[i]])
    index = tokens.index(tokens[index])
    words = ("generate", "To be", "--model", checkpoint, "--max-new-tokens", "100", "--seed", "5", "-t", "1.5")
    code, out, err = run(*words, "--stop", texts[index], "--stop", texts[index])
    expected = tokenizer.decode(prompt + tokens[:index])
    assert (code, out.rstrip("\n")) == (0, expected.rstrip("\n"))
    assert f"new          {index + 1} tokens" in err


def test_stop_texts_are_found_across_tokens(run, checkpoint):
    """In what is added, not in the prompt; a line break can be written as Python does."""
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    prompt, key = tokenizer.encode("To be"), jax.random.key(4)
    tokens = list(ssmkit.stream(model, prompt, 100, ssmkit.Sampler(1.5), key=key))
    added = tokenizer.decode(prompt + tokens).removeprefix("To be")
    several = tokenizer.decode(prompt + tokens[:12]).removeprefix("To be")[-6:]
    assert len(tokenizer.encode(several)) > 2 and "\n" in added.lstrip("\n")
    words = ("generate", "To be", "--model", checkpoint, "--max-new-tokens", "100", "--seed", "4", "-t", "1.5")
    for stop, written in ((several, several), ("\n", "\n"), ("\n", r"\n")):
        code, out, _ = run(*words, "--stop", written, "--stop", "To be")
        assert (code, out.rstrip("\n")) == (0, ("To be" + added[: added.index(stop)]).rstrip("\n"))


def test_end_of_text_of_the_model_stops(run, checkpoint, tmp_path):
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    first = next(ssmkit.stream(model, tokenizer.encode("To be"), 24))
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"eos_token_id": first}))
    assert run("generate", "To be", "--model", folder, "--temperature", "0")[:2] == (0, "To be\n")


def test_prompt_from_a_file_or_standard_input(run, checkpoint, text_file, monkeypatch):
    words = (
        "--model",
        checkpoint / "model.safetensors",
        "--max-new-tokens",
        "1",
        "--tokenizer",
        checkpoint / "tokenizer.json",
    )
    text_file.write_bytes(b"To\r\nbe")
    expected = run("generate", "To\r\nbe", *words, "--seed", "1")[1]
    assert expected.startswith("To\r\nbe")
    assert run("generate", "--prompt-file", text_file, *words, "--seed", "1")[1] == expected
    assert run("generate", "--file", text_file, *words, "--seed", "1")[1] == expected
    for dash in (["-"], ["--prompt-file", "-"], ["--file", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"To\r\nbe")))
        assert run("generate", *dash, *words, "--seed", "1")[1] == expected


def test_embedded_model(run, checkpoint, monkeypatch):
    monkeypatch.setattr(_models, "default_model_path", lambda: checkpoint)
    assert run("generate", "To be", "--max-new-tokens", "2")[0] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(run, checkpoint, dtype):
    assert run("generate", "To be", "--model", checkpoint, "--max-new-tokens", "2", "--dtype", dtype)[0] == 0


@pytest.mark.parametrize("quantize", ["int8", "bfloat16"])
def test_quantize(run, checkpoint, text_file, quantize):
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint, quantize=quantize)
    prompt = tokenizer.encode("To be")
    words = (
        "generate",
        "To be",
        "--model",
        checkpoint,
        "--max-new-tokens",
        "8",
        "--temperature",
        "0",
        "--quantize",
        quantize,
    )
    expected = tokenizer.decode([*prompt, *ssmkit.stream(model, prompt, 8)])
    assert run(*words)[1].rstrip("\n") == expected.rstrip("\n")
    result = json.loads(run("score", "--model", checkpoint, text_file, "--json", "--quantize", quantize)[1])
    expected = ssmkit.score(model, tokenizer.encode(TEXT)).nats_per_token
    np.testing.assert_allclose(result["nats_per_token"], expected, rtol=1e-6)
    assert expected != ssmkit.score(from_pretrained(checkpoint), tokenizer.encode(TEXT)).nats_per_token


@pytest.mark.parametrize("command", ["generate", "score"])
@pytest.mark.parametrize("option", [("--quantize", "int8"), ("--dtype", "float32")])
def test_an_exported_model_stays_as_it_is(run, checkpoint, text_file, tmp_path, command, option):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "exported.json").write_text("{}")
    words = (command, text_file, "--model", tmp_path / "exported", *option)
    assert_one_line(*run(*words), f"is an exported model, whose weights stay as they are: leave out {option[0]}")


@pytest.mark.parametrize("command", ["convert", "export"])
def test_an_exported_model_is_no_checkpoint(run, checkpoint, tmp_path, command):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "exported.json").write_text("{}")
    source = ["--model", tmp_path / "exported"] if command == "export" else [tmp_path / "exported"]
    assert_one_line(*run(command, *source, tmp_path / "new"), "is an exported model, and no checkpoint")
    assert not (tmp_path / "new").exists()
