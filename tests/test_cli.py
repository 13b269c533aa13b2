"""The command line: what goes where, and what a mistake looks like."""

import dataclasses
import errno
import io
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import types
import warnings

import jax
import numpy as np
import pytest
from damage import full_disk

import ssmkit
from ssmkit.checkpoint import from_pretrained, save_pretrained
from ssmkit.cli import _generate, _inspect, _models, _score, _train, main
from ssmkit.models import Mamba2, Mamba2Config
from ssmkit.text._tokenizer import Tokenizer


TEXT = "To be, or not to be: that is the question. Être ou ne pas être 😀.\n"
GEOMETRY = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4, "head_dim": 4, "chunk_size": 16}
ROOT = pathlib.Path(ssmkit.__file__).parents[1]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a random model and a tokenizer."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    tokenizer = Tokenizer.train([TEXT] * 20, 290)
    config = Mamba2Config(vocab_size=tokenizer.vocab_size, **GEOMETRY, tie_word_embeddings=True)
    save_pretrained(Mamba2(config, key=jax.random.key(0)), folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test writes into the user's cache, and none leaves JAX set up otherwise."""
    names = ["compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes"]
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    monkeypatch.setenv("SSMKIT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def run(capsys):
    """Run a command: exit code, standard output, standard error."""

    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


# generate


def test_generate(run, checkpoint):
    """Prompt and continuation on standard output, statistics elsewhere; the same tokens as the library's."""
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    prompt = tokenizer.encode("To be")
    words = ("generate", "To be", "--model", checkpoint, "-n", "24")

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
    assert run("generate", "To be", "--model", checkpoint, "-n", "24", "--temperature", "0")[0] == 0
    assert pieces[0] == "To be" and len(pieces) > 3


def test_generate_nothing(run, checkpoint):
    assert run("generate", "To", "--model", checkpoint, "-n", "0")[:2] == (0, "To\n")


def test_penalty_without_randomness(run, checkpoint):
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    prompt = tokenizer.encode("To be")
    sampler = ssmkit.Sampler(top_k=1, repetition_penalty=1.5)
    expected = list(ssmkit.stream(model, prompt, 24, sampler, key=jax.random.key(0)))
    assert expected != list(ssmkit.stream(model, prompt, 24))
    words = ("generate", "To be", "--model", checkpoint, "-n", "24", "--temperature", "0")
    code, out, err = run(*words, "--repetition-penalty", "1.5")
    assert (code, out.rstrip("\n")) == (0, tokenizer.decode(prompt + expected).rstrip("\n"))


def test_stop_token_is_not_written(run, checkpoint):
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    prompt, key = tokenizer.encode("To be"), jax.random.key(5)
    tokens = list(ssmkit.stream(model, prompt, 100, ssmkit.Sampler(1.5), key=key))
    texts = [tokenizer.decode([token]) for token in tokens]
    index = next(i for i in range(5, 100) if tokenizer.encode(texts[i]) == [tokens[i]])
    index = tokens.index(tokens[index])
    words = ("generate", "To be", "--model", checkpoint, "-n", "100", "--seed", "5", "-t", "1.5")
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
    words = ("generate", "To be", "--model", checkpoint, "-n", "100", "--seed", "4", "-t", "1.5")
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
    words = ("--model", checkpoint / "model.safetensors", "-n", "1", "--tokenizer", checkpoint / "tokenizer.json")
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
    assert run("generate", "To be", "-n", "2")[0] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(run, checkpoint, dtype):
    assert run("generate", "To be", "--model", checkpoint, "-n", "2", "--dtype", dtype)[0] == 0


@pytest.mark.parametrize("quantize", ["int8", "bfloat16"])
def test_quantize(run, checkpoint, text_file, quantize):
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint, quantize=quantize)
    prompt = tokenizer.encode("To be")
    words = ("generate", "To be", "--model", checkpoint, "-n", "8", "--temperature", "0", "--quantize", quantize)
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


def test_several_continuations(run, checkpoint):
    """As a batch of the library's, of which the first is what the same seed gives alone."""
    tokenizer, model = Tokenizer.from_file(checkpoint), from_pretrained(checkpoint)
    words = ("generate", "To be", "-m", checkpoint, "-n", "40", "--seed", "5", "-t", "1.5")
    code, out, err = run(*words, "--n", "3")
    key = jax.random.key(5)
    batch = ssmkit.generate(model, [tokenizer.encode("To be")] * 3, 40, ssmkit.Sampler(1.5), key=key)
    texts = [tokenizer.decode(tokenizer.encode("To be") + row) for row in np.asarray(batch.tokens).tolist()]
    ended = [text + "\n" * (not text.endswith("\n")) for text in texts]
    assert code == 0 and out == "".join(f"=== {i + 1} of 3 ===\n{text}" for i, text in enumerate(ended))
    assert len(set(texts)) == 3 and ended[0] == run(*words)[1]
    assert "new     120 tokens in 3 texts\n" in err and "seed    5\n" in err and "device  cpu\n" in err


def test_several_continuations_in_turns(run, checkpoint, monkeypatch):
    """The number of tokens per dispatch changes nothing, and each text ends where it would alone."""
    words = ("generate", "To be", "-m", checkpoint, "-n", "20", "--seed", "5", "-t", "1.5", "--n", "2")
    whole = run(*words)[1]
    stop = whole.splitlines()[1][8:10]
    monkeypatch.setattr(_generate, "_TURN", 7)
    assert run(*words)[1] == whole
    expected = [text[: text.index(stop)] if stop in text else text.rstrip("\n") for text in whole.split("===\n")[1:]]
    shown = run(*words, "--stop", stop)[1]
    assert shown.startswith(f"=== 1 of 2 ===\n{expected[0]}\n===")
    assert run(*words[:4], "-n", "0", "--n", "2")[1] == "=== 1 of 2 ===\nTo be\n=== 2 of 2 ===\nTo be\n"


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
    ssmkit.save_exported(model, tmp_path / "artefact", segments=(16,))
    result = json.loads(run("inspect", tmp_path / "artefact", "--json")[1])
    expected = json.loads(run("inspect", checkpoint, "--json")[1])
    for name in ("parameters", "bytes", "cache_bytes_per_sequence"):
        assert result[name] == expected[name]
    sizes = {path.stem: path.stat().st_size for path in (tmp_path / "artefact" / "cpu").iterdir()}
    assert result["format"] == "exported model" and result["programs"] == {"cpu": sizes}
    code, out, err = run("inspect", tmp_path / "artefact")
    assert (code, err) == (0, "") and "format                    exported model\nplatforms                 cpu\n" in out
    assert f"program bytes             {sum(sizes.values()):,}\n" in out and f"jax {jax.__version__}" in out


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


# train


@pytest.fixture
def train_words(tmp_path):
    (tmp_path / "train.txt").write_text(TEXT * 20, encoding="utf-8")
    (tmp_path / "valid.txt").write_text(TEXT, encoding="utf-8")
    model = "".join(f"{name} = {value}\n" for name, value in GEOMETRY.items())
    training = "steps = 4\nbatch_size = 2\ncontext = 8\nvocab_size = 260\nlog_every = 2\n"
    (tmp_path / "run.toml").write_text(f"[model]\n{model}time_step_limit = [0.0, inf]\n[training]\n{training}")
    files = [word for name in ("train", "valid") for word in (f"--{name}", tmp_path / f"{name}.txt")]
    return ["train", *files, "--out", tmp_path / "out", "--config", tmp_path / "run.toml"]


def test_train(run, train_words, tmp_path):
    out = tmp_path / "out"
    code, stdout, err = run(*train_words)
    assert code == 0
    assert [line.split()[0] for line in err.splitlines()] == ["2/4", "4/4"]
    assert "loss" in err and "valid" in err and "tokens/s" in err and "left" in err
    result = json.loads(run("score", "--model", out, tmp_path / "valid.txt", "--json")[1])
    line = f"{out}: {result['bits_per_byte']:.4f} bits per byte on {tmp_path / 'valid.txt'}\n"
    assert stdout == line
    assert run(*train_words) == (0, line, f"{out} holds this run, finished after 4 steps: nothing is left to do\n")
    configured = (out / "train.toml").read_text()
    words = [*train_words[:-1], out / "train.toml"]  # the configuration of the run, in full
    assert run(*words)[:2] == (0, line)
    assert_one_line(
        *run(*words, "--steps", "5", "--batch-size", "1"), "`steps`: 4 then, 5 now; `batch_size`: 2 then, 1 now"
    )
    assert_one_line(*run(*words, "--context", "0"), "`context` must be at least 1, got 0")
    assert (out / "train.toml").read_text() == configured


def test_print_config(run, tmp_path):
    """The default configuration, every key of it, is one that can be given."""
    code, out, err = run("train", "--print-config")
    assert (code, err) == (0, "")
    (tmp_path / "default.toml").write_text(out)
    default = _train._configuration(None)
    assert _train._configuration(tmp_path / "default.toml") == default
    fields = {field.name for field in dataclasses.fields(Mamba2Config)}
    unset = {"d_ssm", "bos_token_id", "eos_token_id", "pad_token_id"}  # TOML has no null
    assert fields - set(default.model) == {"vocab_size", *unset}


def test_options_of_training_precede_the_file(tmp_path):
    (tmp_path / "run.toml").write_text(
        "[model]\nhidden_size = 32\nnum_hidden_layers = 1\n[training]\nsteps = 7\nseed = 3\n"
    )
    run = _train._configuration(tmp_path / "run.toml", steps=5, batch_size=3, context=None)
    assert (run.steps, run.batch_size, run.context, run.seed) == (5, 3, 256, 3)
    assert run.model["head_dim"] == 64


def test_termination_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt), _train._termination_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_interrupted_training(run, train_words, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("ssmkit.training._run.fit", interrupt)
    code, out, err = run(*train_words)
    assert (code, out) == (130, "") and "the same command continues" in err and "there is none yet" in err


def test_diverged_training(run, train_words, monkeypatch):
    def diverge(*arguments, **keywords):
        raise FloatingPointError("training diverged")

    monkeypatch.setattr("ssmkit.training._run.fit", diverge)
    assert run(*train_words) == (1, "", "error: training diverged\n")


@pytest.mark.parametrize("package", ["optax", "matplotlib"])
def test_training_without_its_extra(run, train_words, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert run(*train_words) == (2, "", f"error: training needs {package}: pip install 'ssmkit[train]'\n")


@pytest.mark.parametrize(
    "content, problem",
    [
        ("[model]\nhidden_siz = 8\nnum_hidden_layers = 1", "unknown key hidden_siz (known: hidden_size, "),
        ("[model]\nhidden_size = 8", "missing key num_hidden_layers"),
        ("[model]\nhidden_size = 'x'\nnum_hidden_layers = 1", "Mamba2Config"),
        (
            "[model]\nhidden_size = 8\nnum_hidden_layers = 0\nhead_dim = 4",
            "`num_hidden_layers` must be an integer, at least 1",
        ),
        ("[training]\nsteps = 0", "`steps` must be at least 1"),
        ("nonsense", "is not valid TOML"),
        (
            "[model]\nhidden_size = 8\nnum_hidden_layers = 1\ntime_step_limit = [1]\nuse_bias = 3",
            "time_step_limit must be a list of 2 values, each a number, got [1]; use_bias must be true or false, got 3",
        ),
        (
            "[model]\nhidden_size = 8\nnum_hidden_layers = 1\ntie_word_embeddings = 'x'\n[training]\nseed = -1",
            "`seed` must be at least 0, got -1; [model] (Mamba2Config): tie_word_embeddings must be true or false",
        ),
        (f"[model]\nhidden_size = {2**62}\nnum_hidden_layers = {2**40}", "`hidden_size` must be below 2**31, got"),
        ("[model]\nhidden_size = 1048576\nnum_hidden_layers = 1", "GiB of memory"),
        ("[model]\nhidden_size = 64\nnum_hidden_layers = 1000000000", "GiB of memory"),
        (f"[model]\nhidden_size = 64\nnum_hidden_layers = 1\n[training]\nvocab_size = {2**70}", "at most 2**20"),
    ],
)
def test_bad_training_configuration(run, train_words, tmp_path, content, problem):
    (tmp_path / "run.toml").write_text(content)
    code, out, err = run(*train_words)
    assert_one_line(code, out, err, problem)
    assert not (tmp_path / "out").exists()


def test_damaged_training_state(run, train_words, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "state.eqx").write_bytes(b"damaged")
    assert_one_line(*run(*train_words), "does not fit this configuration or is damaged")


def test_training_on_a_full_disk(run, train_words, tmp_path):
    with full_disk(100):
        assert_one_line(*run(*train_words), f"{tmp_path / 'out' / 'run.json'}: File too large")


# Mistakes


def assert_one_line(code, out, err, problem):
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert problem in err


BAD = {
    "no prompt": (["generate"], "give one prompt"),
    "two prompts": (["generate", "x", "--prompt-file", "TEXT"], "give one prompt"),
    "empty prompt": (["generate", "", "-m", "MODEL"], "the prompt is empty"),
    "prompt of bytes": (["generate", "\udcff", "-m", "MODEL"], "the prompt is not UTF-8"),
    "prompt file missing": (["generate", "--prompt-file", "MISSING", "-m", "MODEL"], "No such file"),
    "prompt file a folder": (["generate", "--prompt-file", "MODEL", "-m", "MODEL"], "Is a directory"),
    "prompt file binary": (["generate", "--prompt-file", "BINARY", "-m", "MODEL"], "is not UTF-8 text"),
    "no model": (["generate", "x", "-m", "MISSING"], "neither a folder, a file nor the id"),
    "negative tokens": (["generate", "x", "-m", "MODEL", "-n", "-1"], "Invalid value for "),
    "temperature no number": (["generate", "x", "-m", "MODEL", "-t", "hot"], "Invalid value for '--temperature'"),
    "temperature negative": (
        ["generate", "x", "-m", "MODEL", "-t", "-1"],
        "--temperature must be at least 1e-6 (0 takes the likeliest token), got ",
    ),
    "temperature not a number": (
        ["generate", "x", "-m", "MODEL", "-t", "nan"],
        "--temperature must be at least 1e-6 (0 takes the likeliest token), got ",
    ),
    "top-k": (["generate", "x", "-m", "MODEL", "--top-k", "0"], "--top-k must be an integer, at least 1"),
    "top-p": (["generate", "x", "-m", "MODEL", "--top-p", "2"], "--top-p must be in (0, 1]"),
    "top-p, greedy": (["generate", "x", "-m", "MODEL", "--top-p", "2", "-t", "0"], "--top-p must be in (0, 1]"),
    "min-p": (["generate", "x", "-m", "MODEL", "--min-p", "-1"], "--min-p must be in [0, 1]"),
    "penalty": (["generate", "x", "-m", "MODEL", "--repetition-penalty", "0"], "--repetition-penalty must be above 0"),
    "seed": (["generate", "x", "-m", "MODEL", "--seed", "-1"], "Invalid value for "),
    "dtype": (["generate", "x", "-m", "MODEL", "--dtype", "int8"], "Invalid value for '--dtype'"),
    "quantize": (["generate", "x", "-m", "MODEL", "--quantize", "int4"], "Invalid value for '--quantize'"),
    "stop": (["generate", "x", "-m", "MODEL", "--stop", ""], "--stop must be a text of at least one character"),
    "no tokenizer": (["generate", "x", "-m", "BARE"], "no tokenizer.json beside"),
    "tokenizer missing": (["generate", "x", "-m", "BARE", "--tokenizer", "MISSING"], "no tokenizer at"),
    "tokenizer binary": (["generate", "x", "-m", "BARE", "--tokenizer", "BINARY"], "is not a tokenizer.json"),
    "tokenizer of another model": (["generate", TEXT, "-m", "BARE", "--tokenizer", "BIGGER"], "the model's tokenizer?"),
    "score nothing": (["score", "-m", "MODEL"], "Missing"),
    "score a device": (["score", "-m", "MODEL", "/dev/zero"], "/dev/zero: Not a regular file"),
    "prompt file a device": (["generate", "-m", "MODEL", "--file", "/dev/zero"], "/dev/zero: Not a regular file"),
    "score missing": (["score", "-m", "MODEL", "MISSING"], "MISSING: No such file"),
    "score binary": (["score", "-m", "MODEL", "BINARY"], "is not UTF-8 text"),
    "score empty": (["score", "-m", "MODEL", "EMPTY"], "is empty"),
    "score one token": (["score", "-m", "MODEL", "TOKEN"], "at least 2 are needed"),
    "inspect a text": (["inspect", "TEXT"], "no model of a known architecture"),
    "convert onto a file": (["convert", "MODEL", "TEXT"], "is a file: name a folder"),
    "convert to nonsense": (["convert", "MODEL", "NEW", "--format", "onnx"], "`format` must be one of"),
    "train without texts": (["train"], "Missing option '--train'"),
    "train missing": (["train", "--train", "MISSING", "--valid", "TEXT", "--out", "NEW"], "MISSING: No such file"),
    "train too little": (["train", "--train", "TEXT", "--valid", "TEXT", "--out", "NEW"], "too few for one batch"),
    "train into a file": (
        ["train", "--train", "LONG", "--valid", "TEXT", "--out", "TEXT"],
        "is a file: name a directory",
    ),
    "train without a file": (
        ["train", "--config", "MISSING", *"--train T --valid T --out NEW".split()],
        "No such file",
    ),
    "unknown command": (["dance"], "No such command 'dance'"),
    "unknown option": (["generate", "x", "--colour"], "No such option: --colour"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes(name, run, checkpoint, tmp_path):
    words, problem = BAD[name]
    places = {"MODEL": checkpoint, "NEW": tmp_path / "new", "MISSING": tmp_path / "MISSING"}
    places |= {name: tmp_path / name for name in ("TEXT", "BINARY", "EMPTY", "TOKEN", "LONG", "BARE", "BIGGER")}
    places["TEXT"].write_text(TEXT, encoding="utf-8")
    places["BINARY"].write_bytes(b"\xff\xfe")
    places["EMPTY"].touch()
    places["TOKEN"].write_text("T")
    places["LONG"].write_text(TEXT * 200, encoding="utf-8")
    places["BARE"].mkdir()
    for part in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / part, places["BARE"])
    places["BIGGER"].mkdir()
    Tokenizer.train([TEXT] * 20, 320).save(places["BIGGER"] / "tokenizer.json")
    code, out, err = run(*(places.get(word, word) for word in words))
    if name == "inspect a text":  # a list of what was found and what is known follows
        assert code == 2 and out == "" and err.startswith("error: ") and problem in err
    else:
        assert_one_line(code, out, err, problem)


def test_unreachable_hub(run, monkeypatch):
    def unreachable(*arguments, **keywords):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    assert_one_line(*run("generate", "x", "--model", "someone/some-model"), "no route to host")


def test_hub_model(run, checkpoint, monkeypatch):
    """The tokenizer is fetched too."""
    asked = []

    def download(repo_id, *, allow_patterns):
        asked.extend(allow_patterns)
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert run("generate", "To be", "-n", "1", "--model", "someone/some-model")[0] == 0
    assert "tokenizer.json" in asked


def test_a_revision_of_a_model_on_the_hub(run, checkpoint, tmp_path, monkeypatch):
    """Whatever a command reads of the model is of that revision."""
    asked = []

    def download(repo_id, *, allow_patterns, revision):
        asked.append((repo_id, revision))
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    options = ("--revision", "v1.0")
    assert run("generate", "To be", "-n", "1", "--model", "someone/some-model", *options)[0] == 0
    assert run("inspect", "someone/some-model", *options)[0] == 0
    assert run("convert", "someone/some-model", tmp_path / "out", *options)[0] == 0
    assert set(asked) == {("someone/some-model", "v1.0")}
    assert_one_line(*run("inspect", checkpoint, *options), "`revision` names a version of a model on the hub")


def test_standard_input_that_is_no_text(run, checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert_one_line(*run("generate", "-", "--model", checkpoint), "standard input is not UTF-8 text")


def test_standard_input_that_is_closed(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert_one_line(*run("generate", "-"), "standard input is closed")


def test_no_embedded_model(run, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert_one_line(*run("generate", "x"), "no embedded model at")


def failing(error):
    def fail(*arguments, **keywords):
        raise error

    return fail


FAILURES = {
    "a full disk": (OSError(errno.ENOSPC, "No space", "out/x"), 2, "error: out/x: No space\n"),
    "a full stream": (OSError(errno.ENOSPC, "No space"), 2, "error: standard output: No space\n"),
    "memory": (
        MemoryError("Unable to allocate 9 GiB\nmore"),
        1,
        "error: not enough memory: Unable to allocate 9 GiB\n",
    ),
    "memory of a device": (
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
        1,
        "error: not enough memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n",
    ),
    "a reader that left": (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, ""),
    "a measurement": (SystemExit("a wrong token"), 1, "error: a wrong token\n"),
    "a usage": (SystemExit(2), 2, ""),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(run, monkeypatch, name):
    error, code, line = FAILURES[name]
    monkeypatch.setattr(_generate, "load_model", failing(error))
    assert run("generate", "x") == (code, "", line)


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), RuntimeError("mine"), AssertionError("mine")])
def test_bugs_keep_their_traceback(run, monkeypatch, error):
    monkeypatch.setattr(_generate, "load_model", failing(error))
    with pytest.raises(type(error), match="mine"):
        run("generate", "x")


@pytest.mark.parametrize("error", [RuntimeError("no nope\nmore"), AssertionError()])
def test_no_device(run, monkeypatch, error):
    """JAX raises exceptions of many kinds for it, and raises them again when it is asked again."""
    monkeypatch.setenv("JAX_PLATFORMS", "nope")
    monkeypatch.setattr(_generate, "load_model", failing(error))
    monkeypatch.setattr(jax, "devices", failing(error))
    start = "error: JAX has no device to compute on (JAX_PLATFORMS is 'nope'): "
    reason = "no nope" if str(error) else "AssertionError"
    assert run("generate", "x") == (2, "", f"{start}{reason}\n")


def test_a_folder_that_is_gone(run, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(_generate, "load_model", lambda *arguments: pathlib.Path("x").absolute())
    assert_one_line(*run("generate", "x"), "the working directory does not exist any more")


def test_warnings_are_lines(run, monkeypatch):
    monkeypatch.setattr(_generate, "load_model", lambda *arguments: warnings.warn("an old key", stacklevel=1))
    monkeypatch.setattr(_generate, "load_tokenizer", failing(ValueError("enough")))
    shown = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("generate", "x") == (2, "", "warning: an old key\nerror: enough\n")
    assert warnings.showwarning is shown


# Around the commands


def test_help(run):
    for words in ([], ["--help"], ["-h"]):
        code, out, err = run(*words)
        assert (code, err) == (0, "") and "generate" in out and "train" in out
    for command in ("generate", "score", "inspect", "convert", "train"):
        code, out, err = run(command, "--help")
        assert (code, err) == (0, "") and "Usage: ssmkit " + command in out


def test_compilation_cache(monkeypatch, tmp_path):
    def folder_chosen(**environment):
        jax.config.update("jax_compilation_cache_dir", None)
        for name in ("SSMKIT_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        _models.enable_compilation_cache()
        return jax.config.jax_compilation_cache_dir

    assert folder_chosen(SSMKIT_CACHE_DIR=tmp_path / "own") == str(tmp_path / "own" / "xla")
    assert folder_chosen(XDG_CACHE_HOME=tmp_path) == str(tmp_path / "ssmkit" / "xla")
    assert folder_chosen(HOME=tmp_path, USERPROFILE=tmp_path) == str(tmp_path / ".cache" / "ssmkit" / "xla")
    (tmp_path / "file").touch()
    assert folder_chosen(SSMKIT_CACHE_DIR=tmp_path / "file") is None
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    _models.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


# In processes of their own


def start(*words, **environment):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SSMKIT_TYPECHECK": "0"} | environment
    words = [sys.executable, "-m", "ssmkit", *(word if isinstance(word, bytes) else str(word) for word in words)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_closed_pipe_is_no_error(checkpoint):
    """Also: programs are kept for the next start."""
    with start("generate", "To be", "--model", checkpoint, "-n", "1000000") as process:
        assert process.stdout.read(5) == b"To be"
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, b"")
    assert any(pathlib.Path(os.environ["SSMKIT_CACHE_DIR"], "xla").iterdir())


STREAMS = {
    ">&- --version": (2, "", "error: standard output is closed: send it to /dev/null if nobody reads it\n"),
    ">/dev/full --version": (2, "", "error: standard output: No space left on device\n"),
    ">/dev/full generate To -m MODEL -n 1": (2, "", "error: standard output: No space left on device\n"),
    "2>&- generate To -m MODEL -n 0": (0, "To\n", ""),
    "2>/dev/full generate To -m MODEL -n 0": (0, "To\n", ""),
    "<&- 2>&- genrate": (2, "", ""),
    "<&- generate - -m MODEL": (2, "", "error: standard input is closed\n"),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device on this system")
@pytest.mark.parametrize("line", STREAMS)
def test_standard_streams(checkpoint, line):
    """Closed ones and full ones: no traceback, no statistics on standard output, and never a silent success."""
    command = f"exec {shlex.quote(sys.executable)} -m ssmkit {line.replace('MODEL', shlex.quote(str(checkpoint)))}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SSMKIT_TYPECHECK": "0"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == STREAMS[line]


SURROUNDINGS = {
    "JAX_PLATFORMS=nope": "JAX has no device to compute on (JAX_PLATFORMS is 'nope'): ",
    "JAX_ENABLE_X64=maybe": "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'",
    "SSMKIT_TYPECHECK=x": "`SSMKIT_TYPECHECK` must be 0 or 1, got 'x'",
}


@pytest.mark.parametrize("setting", SURROUNDINGS)
def test_surroundings(checkpoint, setting):
    name, _, value = setting.partition("=")
    with start("generate", "To", "--model", checkpoint, **{name: value}) as process:
        out, err = process.communicate()
    assert_one_line(process.returncode, out.decode(), err.decode(), SURROUNDINGS[setting])


def test_a_prompt_is_utf8_whatever_the_locale(checkpoint):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with start("generate", "Être".encode(), "--model", checkpoint, "-n", "0", **plain) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (0, b"\\xcatre\n")


def test_interrupt(checkpoint):
    with start("generate", "To be", "--model", checkpoint, "-n", "1000000") as process:
        try:
            assert process.stdout.read(500).startswith(b"To be")
            process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=100)[1]
        finally:
            process.kill()
    assert (process.returncode, err) == (130, b"")


def test_help_and_mistakes_wait_for_nothing_heavy():
    """What needs no model is answered at once: neither JAX nor anything else that is slow to import."""
    calls = [["--help"], ["--version"], ["genrate"], ["generate", "x", "--modle", "m"], ["generate"], ["score"]]
    calls += [[command, "--help"] for command in ("generate", "bench", "train")]
    code = f"import sys, ssmkit.cli; print([ssmkit.cli.main(words) for words in {calls}]); print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SSMKIT_TYPECHECK": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    *_, codes, loaded = done.stdout.splitlines()
    assert codes == "[0, 0, 2, 2, 2, 2, 0, 0, 0]"
    heavy = {"jax", "numpy", "equinox", "tokenizers", "huggingface_hub", "optax", "matplotlib", "rich"}
    assert not heavy & set(loaded.split())
