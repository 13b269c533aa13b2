"""What the tests of the command line share: a small checkpoint, and commands run in this process or in their own."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

import ssmkit
from ssmkit.checkpoint import save_pretrained
from ssmkit.cli import main
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


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """No test writes into the user's cache, and none leaves JAX set up otherwise."""
    names = ["compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes"]
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    monkeypatch.setenv("SSMKIT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def run(capsys, own_cache):
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


# Mistakes


def assert_one_line(code, out, err, problem):
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert problem in err


def failing(error):
    def fail(*arguments, **keywords):
        raise error

    return fail


# In processes of their own


def start(*words, **environment):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SSMKIT_TYPECHECK": "0"} | environment
    words = [sys.executable, "-m", "ssmkit", *(word if isinstance(word, bytes) else str(word) for word in words)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
