"""Commands in processes of their own: help, streams, signals, surroundings."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys

import jax
import pytest
from command_line import ROOT, assert_one_line, start

from ssmkit.cli import _models


pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_a_closed_pipe_is_no_error(checkpoint):
    """Also: programs are kept for the next start."""
    with start("generate", "To be", "--model", checkpoint, "--max-new-tokens", "1000000") as process:
        assert process.stdout.read(5) == b"To be"
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, b"")
    assert any(pathlib.Path(os.environ["SSMKIT_CACHE_DIR"], "xla").iterdir())


STREAMS = {
    ">&- --version": (2, "", "error: standard output is closed: send it to /dev/null if nobody reads it\n"),
    ">/dev/full --version": (2, "", "error: standard output: No space left on device\n"),
    ">/dev/full generate To -m MODEL --max-new-tokens 1": (2, "", "error: standard output: No space left on device\n"),
    "2>&- generate To -m MODEL --max-new-tokens 0": (0, "To\n", ""),
    "2>/dev/full generate To -m MODEL --max-new-tokens 0": (0, "To\n", ""),
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
    with start("generate", "Être".encode(), "--model", checkpoint, "--max-new-tokens", "0", **plain) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (0, b"\\xcatre\n")


def test_interrupt(checkpoint):
    with start("generate", "To be", "--model", checkpoint, "--max-new-tokens", "1000000") as process:
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
