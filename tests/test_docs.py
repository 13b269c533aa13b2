"""The documentation runs: every Python block of every page, as a reader would run it.

The blocks of a page are one program, run in a fresh Python in a directory of its own, with run-time checks of types as
in this process: CI runs all pages with these checks on, and then most of them with the checks off. A `text` block right
after a Python block is its exact output, the last line being `Class: message` if it raises; a Python block without one
may print what it likes, and may not raise. Numbers with a decimal point may differ a little, and anything of the size
of rounding counts as rounding.

    python tests/test_docs.py [page.md ..]    writes what the blocks print into the `text` blocks that differ
"""

import inspect
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import pytest

import ssmkit.cli
import ssmkit.models


ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?|-?\d+e[+-]?\d+")
SECONDS = 300  # for the busiest machine: no page takes more than 30 on a free one

RUN = """
import contextlib, io, json, sys, traceback
results, names = [], {"__name__": "__main__"}
for title, source in json.load(sys.stdin):
    printed, error, trace = io.StringIO(), None, ""
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(source, title, "exec"), names)
        except Exception as raised:
            error, trace = f"{type(raised).__name__}: {raised}", traceback.format_exc()
    results.append((printed.getvalue(), error, trace))
json.dump(results, sys.__stdout__)
"""


class Example(NamedTuple):
    """A Python block, with the `text` block that follows, if one does."""

    line: int
    source: str
    expected: str | None
    span: tuple[int, int]  # of what is expected, in the page


def python_blocks(page: str) -> list[Example]:
    """The Python blocks of a page, in order."""
    blocks, examples = list(BLOCK.finditer(page)), []
    for block, after in zip(blocks, [*blocks, None][1:], strict=True):
        if block[1] == "python":
            told = after is not None and after[1] == "text" and not page[block.end() : after.start()].strip()
            line = page.count("\n", 0, block.start(2)) + 1
            expected, span = (after[2], after.span(2)) if told else (None, (0, 0))
            examples.append(Example(line, block[2], expected, span))
    return examples


def run(path: pathlib.Path, examples: list[Example], timeout: float = SECONDS) -> list[tuple[str, str | None, str]]:
    """What every block prints, the error it raises, and where."""
    # Lines are counted from the top of the page, so that a traceback points into it.
    programs = [(f"{path.name}, the block at line {e.line}", "\n" * (e.line - 1) + e.source) for e in examples]
    settings = re.compile("(JAX|SSMKIT|PYTEST)_(?!PLATFORMS)")
    environment = {name: value for name, value in os.environ.items() if not settings.match(name)}
    quickly = "--xla_backend_optimization_level=0"  # pages compile much and compute little
    with tempfile.TemporaryDirectory() as directory:
        # Stands for the reader's own checkpoint.
        (pathlib.Path(directory) / "path" / "to").mkdir(parents=True)
        os.symlink(ssmkit.default_model_path(), pathlib.Path(directory) / "path" / "to" / "model")
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            input=json.dumps(programs),
            capture_output=True,
            text=True,
            cwd=directory,
            env=environment | {"MPLBACKEND": "agg", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {quickly}"},
            timeout=timeout,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout)]


def shown(printed: str, error: str | None) -> str:
    """What a `text` block shows."""
    lines = [line.rstrip() for line in (printed + (error or "")).strip().splitlines()]
    return "\n".join(lines) + "\n"


def agree(got: str, expected: str) -> bool:
    """Equal but for the last digits of numbers."""
    if NUMBER.sub("#", got) != NUMBER.sub("#", expected):
        return False
    pairs = zip(map(float, NUMBER.findall(got)), map(float, NUMBER.findall(expected)), strict=True)
    return all(math.isclose(a, b, rel_tol=0.05, abs_tol=2e-6) for a, b in pairs)


def _name(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


def problems(path: pathlib.Path, page: str) -> list[str]:
    """What is wrong with the Python blocks of a page."""
    examples = python_blocks(page)
    results = run(path, examples)
    if not len(results) == len(examples) == page.count("```python") > 0:
        return [f"{path.name} has {page.count('```python')} Python blocks, and {len(results)} ran"]
    found = []
    for example, (printed, error, trace) in zip(examples, results, strict=True):
        if example.expected is None:
            found += [] if error is None else [trace]
        elif not agree(got := shown(printed, error), example.expected):
            found.append(f"{path.name}:{example.line} prints\n{got}\nand not\n{example.expected}\n{trace}")
    return found


# What these pages show of JAX, the other pages or the tests of both Pythons show too.
ONCE = ("docs/errors.md", "docs/models.md", "docs/research.md", "docs/training.md")


def _pages_with_code():
    for page in PAGES:
        if "```python" in page.read_text("utf-8"):
            yield pytest.param(page, id=_name(page), marks=[pytest.mark.once] if _name(page) in ONCE else [])


@pytest.mark.parametrize("page", [*_pages_with_code()])
def test_every_python_block_runs_and_prints_what_the_page_says(page):
    found = problems(page, page.read_text("utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.once
@pytest.mark.parametrize(
    "page, wrong",
    [
        ("```python\nx = 1.0\n```\n```python\nprint(x / 3)\n```\n\n```text\n0.3333333\n```\n", None),
        ("```python\n1 / 0\n```\n\n```text\nZeroDivisionError: division by zero\n```\n", None),
        (
            "```python\n1 / 0\n```\n\nA remark.\n\n```text\nZeroDivisionError: division by zero\n```\n",
            "the block at line 2",
        ),
        ("```python\n1 / 0\n```\n\n```text\nZeroDivisionError: no\n```\n", "division by zero"),
        ("```python\nx = 1\n```\n\n```text\nZeroDivisionError: no\n```\n", "and not"),
        ("```python\nprint(0.5)\n```\n\n```text\n0.6\n```\n", "prints\n0.5"),
        ("No block at all.", "0 Python blocks"),
        ("```python\nprint(1)\n", "and 0 ran"),
    ],
)
def test_what_a_page_gets_wrong_is_noticed(page, wrong):
    found = problems(ROOT / "page.md", page)
    assert (wrong is None and not found) or (wrong is not None and wrong in "".join(found)), found


@pytest.mark.once
def test_the_reference_has_every_public_name():
    """But for submodules, families of kernels, type aliases, and what a mixer's cache is made of."""
    reference = (ROOT / "docs" / "api.md").read_text("utf-8")
    listed = set(re.findall(r"^::: (\S+)$", reference, re.MULTILINE))
    for module in (ssmkit, ssmkit.testing, ssmkit.kernels, ssmkit.models):
        for name in dir(module):  # the package imports its names on first use
            value = getattr(module, name)
            public = inspect.isclass(value) or inspect.isfunction(value)
            if public and not name.startswith("_") and not name.endswith("Cache"):
                assert f"{module.__name__}.{name}" in listed, name


@pytest.mark.once
def test_there_are_pages_with_python_blocks():
    assert sum("```python" in page.read_text("utf-8") for page in PAGES) >= 6


def shell_commands() -> list[tuple[str, tuple[str, ...]]]:
    """Every command of every shell block: the page, and its words."""
    found = []
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text("utf-8")):
            if block[1] in ("bash", "sh", "shell"):
                for line in block[2].replace("\\\n", " ").splitlines():
                    commands = re.split(r"&&|\|\||;|\|", line.partition("#")[0])
                    found += [(_name(page), tuple(command.split())) for command in commands if command.strip()]
    return found


@pytest.mark.once
def test_the_commands_of_the_pages_exist(capsys):
    """`ssmkit` commands by their help, which names every option that a page uses; `python -m benchmarks` is one."""
    seen = set()
    for page, words in shell_commands():
        if words[:3] == ("python", "-m", "benchmarks"):
            words = ("ssmkit", "bench", *words[3:])
        if words[0] == "ssmkit":
            command = words[1 : 3 if words[1] == "bench" else 2]
            assert ssmkit.cli.main([*command, "--help"]) == 0, (page, words)
            text = capsys.readouterr().out
            for word in words[1:]:
                assert not word.startswith("-") or re.search(rf"(?<!\S){word}\b", text), (page, words, word)
            seen.add(command)
    assert {("generate",), ("train",), ("bench", "decode"), ("bench", "recurrences")} <= seen


@pytest.mark.once
def test_the_benchmarks_run_from_a_checkout():
    words = [sys.executable, "-m", "benchmarks", "decode", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 and "--geometry" in done.stdout, done.stderr


def _update(page: pathlib.Path) -> None:
    text = page.read_text("utf-8")
    examples, started = python_blocks(text), time.perf_counter()
    results = run(page, examples)
    for example, (printed, error, trace) in reversed(list(zip(examples, results, strict=True))):
        if example.expected is None:
            if error is not None:
                print(trace, file=sys.stderr)
        elif not agree(got := shown(printed, error), example.expected):
            text = text[: example.span[0]] + got + text[example.span[1] :]
    page.write_text(text, "utf-8")
    print(f"{_name(page)}: {len(examples)} blocks, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    for argument in sys.argv[1:] or [page for page in PAGES if "```python" in page.read_text("utf-8")]:
        _update(pathlib.Path(argument).resolve())
