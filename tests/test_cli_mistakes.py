"""The command line: a mistake is one line and an exit code."""

import errno
import io
import pathlib
import shutil
import sys
import warnings

import jax
import pytest
from command_line import TEXT, assert_one_line, failing

from ssmkit.cli import _generate
from ssmkit.text._tokenizer import Tokenizer


pytestmark = pytest.mark.usefixtures("own_cache")


BAD = {
    "no prompt": (["generate"], "give one prompt"),
    "two prompts": (["generate", "x", "--prompt-file", "TEXT"], "give one prompt"),
    "empty prompt": (["generate", "", "-m", "MODEL"], "the prompt is empty"),
    "prompt of bytes": (["generate", "\udcff", "-m", "MODEL"], "the prompt is not UTF-8"),
    "prompt file missing": (["generate", "--prompt-file", "MISSING", "-m", "MODEL"], "No such file"),
    "prompt file a folder": (["generate", "--prompt-file", "MODEL", "-m", "MODEL"], "Is a directory"),
    "prompt file binary": (["generate", "--prompt-file", "BINARY", "-m", "MODEL"], "is not UTF-8 text"),
    "no model": (["generate", "x", "-m", "MISSING"], "neither a folder, a file nor the id"),
    "negative tokens": (["generate", "x", "-m", "MODEL", "--max-new-tokens", "-1"], "Invalid value for "),
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


class Terminal(io.StringIO):
    """Standard input that nobody has sent anything to."""

    def isatty(self):
        return True


@pytest.mark.parametrize("name", BAD)
def test_mistakes(name, run, checkpoint, tmp_path, monkeypatch):
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
    monkeypatch.setattr(sys, "stdin", Terminal())
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
    assert run("generate", "To be", "--max-new-tokens", "1", "--model", "someone/some-model")[0] == 0
    assert "tokenizer.json" in asked


def test_a_revision_of_a_model_on_the_hub(run, checkpoint, tmp_path, monkeypatch):
    """Whatever a command reads of the model is of that revision."""
    asked = []

    def download(repo_id, *, allow_patterns, revision):
        asked.append((repo_id, revision))
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    options = ("--revision", "v1.0")
    assert run("generate", "To be", "--max-new-tokens", "1", "--model", "someone/some-model", *options)[0] == 0
    assert run("inspect", "someone/some-model", *options)[0] == 0
    assert run("convert", "someone/some-model", tmp_path / "out", *options)[0] == 0
    assert set(asked) == {("someone/some-model", "v1.0")}
    assert_one_line(*run("inspect", checkpoint, *options), "`revision` names a version of a model on the hub")


def test_a_revision_of_a_tokenizer_on_the_hub(run, checkpoint, monkeypatch):
    """It is that of `--tokenizer` only, whatever the model's is."""
    asked = []

    def download(repo_id, *, allow_patterns, revision):
        asked.append((repo_id, revision))
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    command = ("generate", "To be", "--max-new-tokens", "1", "--model", checkpoint, "--tokenizer-revision", "v2")
    assert run(*command, "--tokenizer", "someone/words")[0] == 0
    assert set(asked) == {("someone/words", "v2")}
    assert_one_line(*run(*command), "--tokenizer-revision needs --tokenizer")


def test_standard_input_that_is_no_text(run, checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert_one_line(*run("generate", "-", "--model", checkpoint), "standard input is not UTF-8 text")


def test_standard_input_that_is_closed(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert_one_line(*run("generate", "-"), "standard input is closed")


def test_no_embedded_model(run, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert_one_line(*run("generate", "x"), "no embedded model at")


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
