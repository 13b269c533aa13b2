"""`ssmkit score`, `inspect` and `convert`: what they say of a model, and what they write."""

import io
import json
import math
import os
import sys
import types

import jax
import numpy as np
import pytest
from command_line import TEXT, assert_one_line
from damage import full_disk

import ssmkit
from ssmkit.checkpoint import from_pretrained
from ssmkit.cli import _inspect, _models, _score
from ssmkit.text._tokenizer import Tokenizer


pytestmark = pytest.mark.usefixtures("own_cache")


# score


def test_score(run, checkpoint, text_file):
    code, out, err = run("score", "--model", checkpoint, text_file, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    tokens = tokenizer.encode(TEXT)
    expected = ssmkit.score(model, tokens)
    size = len(TEXT.encode()) - len(tokenizer.decode(tokens[:1]))
    assert result["tokens"] == len(tokens) - 1 and result["bytes"] == size
    np.testing.assert_allclose(result["nats_per_token"], expected.nats_per_token, rtol=1e-6)
    np.testing.assert_allclose(result["perplexity"], math.exp(result["nats_per_token"]), rtol=1e-6)
    np.testing.assert_allclose(result["bits_per_byte"], expected.nats / math.log(2) / size, rtol=1e-6)
    assert result["tokens_per_second"] > 0 and result["device"] == "cpu"

    code, out, err = run("score", "--model", checkpoint, text_file)
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        f"nats/token  {result['nats_per_token']:.4f}",
        f"perplexity  {result['perplexity']:.4f}",
        f"bits/byte   {result['bits_per_byte']:.4f}",
    ]


def test_score_of_standard_input(run, checkpoint, text_file, monkeypatch):
    figures = {}
    for source in (text_file, "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
        figures[source] = json.loads(run("score", "-m", checkpoint, source, "--json")[1]) | {"tokens_per_second": 0}
    assert figures[text_file] == figures["-"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert_one_line(*run("score", "-m", checkpoint, "-"), "standard input is empty")


def test_the_speed_of_scoring_is_without_compilation(run, checkpoint, text_file, monkeypatch):
    """Whatever is compiled is compiled before the clock starts."""
    events = []
    monkeypatch.setattr(_score, "time", types.SimpleNamespace(perf_counter=lambda: events.append("clock") or 1e9))
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(
        listener := lambda event, duration, **more: events.append("compiled") if "backend_compile" in event else None
    )
    try:
        with pytest.raises(ZeroDivisionError):  # this clock stands still
            run("score", "-m", checkpoint, text_file)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert "compiled" in events[: events.index("clock")] and "compiled" not in events[events.index("clock") :]


def test_progress_bar_of_a_terminal(run, checkpoint, text_file, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = run("score", "--model", checkpoint, text_file, "--json")
    assert code == 0 and json.loads(out)
    assert "tokens/s" in err and "━" in err


# inspect


def test_inspect(run, checkpoint):
    code, out, err = run("inspect", checkpoint, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    model = from_pretrained(checkpoint)
    count = sum(array.size for array in jax.tree.leaves(model))
    cache = sum(array.nbytes for array in jax.tree.leaves(model.init_cache()))
    assert (result["architecture"], result["format"], result["parameters"]) == ("mamba2", "hf", count)
    assert result["bytes"] == {"float32": 4 * count}
    assert result["cache_bytes_per_sequence"] == cache
    assert result["config"]["hidden_size"] == 8 and result["config"]["time_step_limit"] == [0.0, "Infinity"]
    tensors = {entry["name"]: entry for entry in result["tensors"]}
    embedding = tensors["backbone.embeddings.weight"]
    assert embedding["shape"] == [290, 8] and embedding["dtype"] == "float32" and embedding["bytes"] == 290 * 8 * 4

    code, out, err = run("inspect", checkpoint / "model.safetensors")
    assert (code, err) == (0, "")
    assert f"parameters                {count:,}\n" in out
    assert len([line for line in out.splitlines() if line.endswith(" bytes")]) == len(tensors)


def test_inspect_reads_no_weights(run, checkpoint, monkeypatch):
    monkeypatch.setattr(ssmkit.checkpoint.StoredTensor, "read", lambda self: pytest.fail("read"))
    assert run("inspect", checkpoint)[0] == 0


def test_inspect_the_embedded_model(run, checkpoint, monkeypatch):
    monkeypatch.setattr(_inspect, "default_model_path", lambda: checkpoint)
    assert run("inspect")[1] == run("inspect", checkpoint)[1] != ""


def test_inspect_an_exported_model(run, checkpoint, tmp_path):
    model = from_pretrained(checkpoint)
    ssmkit.save_exported(model, tmp_path / "artefact", lengths=(16,))
    result = json.loads(run("inspect", tmp_path / "artefact", "--json")[1])
    expected = json.loads(run("inspect", checkpoint, "--json")[1])
    for name in ("parameters", "bytes", "cache_bytes_per_sequence"):
        assert result[name] == expected[name]
    sizes = {path.stem: path.stat().st_size for path in (tmp_path / "artefact" / "cpu").iterdir()}
    assert result["format"] == "exported model" and result["programs"] == {"cpu": sizes}
    code, out, err = run("inspect", tmp_path / "artefact")
    assert (code, err) == (0, "") and "format                    exported model\nplatforms                 cpu\n" in out
    assert f"program bytes             {sum(sizes.values()):,}\n" in out and f"jax {jax.__version__}" in out


def test_inspect_says_how_sizes_fit_a_device(run):
    code, out, err = run("inspect", "--target", "v6e")
    assert code == 0 and "cache bytes on v6e" in out
    assert err.startswith("warning: a cache of ") and "times its bytes on v6e" in err
    code, out, err = run("inspect", "--target", "v6e", "--json")
    fit = json.loads(out)["target"]
    assert (code, err, fit["device"]) == (0, "", "v6e")
    assert fit["cache_bytes"] > json.loads(out)["cache_bytes_per_sequence"] and fit["problems"]
    assert_one_line(*run("inspect", "--target", "v9"), "`target` must name one of v4, v5e")


# convert


def test_convert_the_embedded_model(run, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(_models, "default_model_path", lambda: checkpoint)
    assert run("convert", tmp_path / "new", "--format", "state-spaces")[0] == 0
    assert sorted(os.listdir(tmp_path / "new")) == ["config.json", "pytorch_model.bin", "tokenizer.json"]
    assert_one_line(*run("convert", checkpoint), "is not empty: pass --force to write the embedded model into it")
    assert_one_line(*run("convert", "a", "b", "c"), "one checkpoint and one folder at most, got 3: a b c")


def test_convert_there_and_back(run, checkpoint, tmp_path):
    there, back = tmp_path / "there", tmp_path / "back"
    code, out, err = run("convert", checkpoint, there, "--format", "state-spaces")
    assert (code, err) == (0, "") and out.startswith(f"{there}: state-spaces format, ")
    assert sorted(os.listdir(there)) == ["config.json", "pytorch_model.bin", "tokenizer.json"]
    assert run("convert", there, back)[0] == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert (back / name).read_bytes() == (checkpoint / name).read_bytes()

    code, out, err = run("convert", checkpoint, back, "--dtype", "bfloat16")
    assert code == 2 and "is not empty: pass --force" in err
    assert run("convert", checkpoint, back, "--dtype", "bfloat16", "--force")[0] == 0
    assert json.loads((back / "config.json").read_text())["dtype"] == "bfloat16"


def test_convert_to_a_full_disk(run, checkpoint, tmp_path):
    with full_disk(5000):
        code, out, err = run("convert", checkpoint, tmp_path / "new")
    assert_one_line(code, out, err, f"error: {tmp_path / 'new' / 'model.safetensors'}: File too large")
    assert not os.listdir(tmp_path / "new")
