"""`ssmkit generate` with several texts, as JSON, without the prompt, and from a pipe."""

import io
import json
import sys

import jax
import numpy as np
import pytest
from command_line import assert_one_line

import ssmkit
from ssmkit.checkpoint import from_pretrained
from ssmkit.text._tokenizer import Tokenizer


pytestmark = pytest.mark.usefixtures("own_cache")


def test_several_continuations(run, checkpoint):
    """As a batch of the library's, of which the first is what the same seed gives alone."""
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    words = ("generate", "To be", "-m", checkpoint, "--max-new-tokens", "40", "--seed", "5", "-t", "1.5")
    code, out, err = run(*words, "-n", "3")
    key = jax.random.key(5)
    batch = ssmkit.generate(model, [tokenizer.encode("To be")] * 3, 40, ssmkit.Sampler(1.5), key=key)
    texts = [tokenizer.decode(tokenizer.encode("To be") + row) for row in np.asarray(batch.tokens).tolist()]
    ended = [text + "\n" * (not text.endswith("\n")) for text in texts]
    assert code == 0 and out == "".join(f"=== {i + 1} of 3 ===\n{text}" for i, text in enumerate(ended))
    assert len(set(texts)) == 3 and ended[0] == run(*words)[1]
    assert "new     120 tokens in 3 texts\n" in err and "seed    5\n" in err and "device  cpu\n" in err


def test_several_continuations_end_where_they_would_alone(run, checkpoint):
    words = ("generate", "To be", "-m", checkpoint, "--max-new-tokens", "20", "--seed", "5", "-t", "1.5", "-n", "2")
    whole = run(*words)[1]
    stop = whole.splitlines()[1][8:10]
    expected = [text[: text.index(stop)] if stop in text else text.rstrip("\n") for text in whole.split("===\n")[1:]]
    shown = run(*words, "--stop", stop)[1]
    assert shown.startswith(f"=== 1 of 2 ===\n{expected[0]}\n===")
    nothing = run(*words[:4], "--max-new-tokens", "0", "-n", "2")[1]
    assert nothing == "=== 1 of 2 ===\nTo be\n=== 2 of 2 ===\nTo be\n"


def test_a_batch_file(run, checkpoint, tmp_path):
    r"""A prompt per line, `\n` written so; each continued as often as is asked for, all of it as JSON too."""
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    (tmp_path / "prompts.txt").write_bytes(b"To be\n\nTo\\nbe\r\n\xc3\x8atre")
    prompts = ["To be", "To\nbe", "Être"]
    words = ("generate", "--batch", tmp_path / "prompts.txt", "-m", checkpoint, "--max-new-tokens", "9", "-t", "0")
    texts = ssmkit.generate(model, prompts, 9, tokenizer=tokenizer).texts
    code, out, err = run(*words, "--json")
    assert code == 0 and json.loads(out) == {
        "continuations": [
            {"prompt": prompt, "text": text, "tokens": 9, "finished": False}
            for prompt, text in zip(prompts, texts, strict=True)
        ]
    }
    count = sum(len(tokenizer.encode(prompt)) for prompt in prompts)
    assert f"prompt  {count} tokens in 3 texts\nnew     27 tokens in 3 texts\n" in err
    whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    ended = [text + "\n" * (not text.endswith("\n")) for text in whole]
    assert run(*words)[1] == "".join(f"=== {i + 1} of 3 ===\n{text}" for i, text in enumerate(ended))
    twice = json.loads(run(*words, "-n", "2", "--json")[1])["continuations"]
    assert [entry["prompt"] for entry in twice] == [prompt for prompt in prompts for _ in range(2)]
    assert [entry["text"] for entry in twice] == [text for text in texts for _ in range(2)]


def test_json_says_what_was_random_and_what_ended(run, checkpoint):
    words = ("generate", "To be", "-m", checkpoint, "--max-new-tokens", "30", "-t", "1.5", "--json")
    free = json.loads(run(*words, "--seed", "5")[1])
    assert free["seed"] == 5 and free["continuations"][0]["finished"] is False
    (entry,) = free["continuations"]
    assert entry["prompt"] == "To be" and entry["tokens"] == 30
    assert run(*words[:-1], "--seed", "5")[1].rstrip("\n") == ("To be" + entry["text"]).rstrip("\n")
    stop = entry["text"][5:7]
    (ended,) = json.loads(run(*words, "--seed", "5", "--stop", stop)[1])["continuations"]
    assert ended["finished"] and ended["text"] == entry["text"][: entry["text"].index(stop)]
    assert ended["tokens"] <= 30


def test_without_the_prompt(run, checkpoint):
    words = ("generate", "To be", "-m", checkpoint, "--max-new-tokens", "9", "--seed", "1")
    whole = run(*words)[1]
    assert "To be" + run(*words, "--no-echo")[1] == whole
    both = run(*words, "-n", "2")[1]
    assert both.startswith(f"=== 1 of 2 ===\n{whole}")
    assert run(*words, "-n", "2", "--no-echo")[1] == both.replace("===\nTo be", "===\n")


def test_a_bare_pipe_is_the_prompt(run, checkpoint, monkeypatch):
    words = ("-m", checkpoint, "--max-new-tokens", "2", "--seed", "1")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Être\n".encode())))
    assert run("generate", *words)[1] == run("generate", "Être\n", *words)[1]
    monkeypatch.setattr(sys, "stdin", None)
    assert_one_line(*run("generate", *words), "give one prompt")


@pytest.mark.parametrize(
    ("content", "words", "problem"),
    [
        (b"\n\n", [], "holds no prompt: write one per line"),
        (b"\xff", [], "is not UTF-8 text"),
        (b"a", ["To be"], "give one prompt"),
        (b"a", ["--file", "x"], "give one prompt"),
    ],
)
def test_mistaken_batches(run, checkpoint, tmp_path, content, words, problem):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert_one_line(*run("generate", *words, "--batch", tmp_path / "prompts.txt", "-m", checkpoint), problem)


def test_the_shell_asks_for_completions(run, monkeypatch):
    monkeypatch.setenv("_SSMKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "ssmkit generate --no-e")
    monkeypatch.setenv("COMP_CWORD", "2")
    code, out, err = run()
    assert (code, out.split(), err) == (0, ["--no-echo"], "")
    monkeypatch.delenv("_SSMKIT_COMPLETE")
    assert "--install-completion" in run("--help")[1]
