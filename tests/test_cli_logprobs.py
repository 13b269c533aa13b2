"""`ssmkit generate --logprobs`."""

import json

import numpy as np
import pytest

import ssmkit


pytestmark = [pytest.mark.once, pytest.mark.usefixtures("own_cache")]


def expected(checkpoint, prompts, count, top):
    model, tokenizer = ssmkit.from_pretrained(checkpoint), ssmkit.Tokenizer.from_file(checkpoint)
    out = ssmkit.generate(model, prompts, count, tokenizer=tokenizer, log_probs=top).generation
    return tokenizer, out


def test_json_has_every_token(run, checkpoint, tmp_path):
    """Its id, text and log-probability, and the most probable in its place; without the option nothing of it."""
    (tmp_path / "prompts.txt").write_text("To be\nor not\n")
    words = ("generate", "--batch", tmp_path / "prompts.txt", "-m", checkpoint, "--max-new-tokens", "7", "-t", "0")
    found = json.loads(run(*words, "--json", "--logprobs", "2")[1])["continuations"]
    tokenizer, out = expected(checkpoint, ["To be", "or not"], 7, 2)
    for row, entry in enumerate(found):
        assert [token["id"] for token in entry["logprobs"]] == np.asarray(out.tokens[row]).tolist()
        for i, token in enumerate(entry["logprobs"]):
            assert token["text"] == tokenizer.written([token["id"]])
            np.testing.assert_allclose(token["logprob"], out.log_probs[row, i], rtol=1e-5)
            assert [best["id"] for best in token["top"]] == np.asarray(out.top_tokens[row, i]).tolist()
            assert token["top"][0] == {name: token[name] for name in ("id", "text", "logprob")}  # it is greedy
    plain = json.loads(run(*words, "--json")[1])["continuations"]
    assert plain == [{name: value for name, value in entry.items() if name != "logprobs"} for entry in found]


def test_a_table_follows_the_text(run, checkpoint):
    words = ("generate", "To be", "-m", checkpoint, "--max-new-tokens", "5", "-t", "0")
    _, out = expected(checkpoint, ["To be"], 5, 1)
    plain, (code, text, _) = run(*words)[1], run(*words, "--logprobs", "0")
    assert code == 0 and text.startswith(plain)
    lines = text[len(plain) :].splitlines()
    assert [float(line.split()[0]) for line in lines] == pytest.approx(np.asarray(out.log_probs[0]).tolist(), abs=1e-4)
    both = run(*words, "--logprobs", "1", "-n", "2")[1].split("=== 2 of 2 ===\n")[1]
    lines = both[len(plain) :].splitlines()
    assert len(lines) == 5 and all(line.count(line.split()[0]) == 2 for line in lines)


def test_mistaken_numbers(run, checkpoint):
    code, out, err = run("generate", "To be", "-m", checkpoint, "--logprobs", "100000")
    assert (code, out) == (2, "") and "`log_probs` must be an integer in [0, " in err
    assert run("generate", "To be", "-m", checkpoint, "--logprobs", "-1")[0] == 2
    assert run("generate", "To be", "-m", checkpoint, "--max-new-tokens", "0", "--logprobs", "2")[:2] == (0, "To be\n")
