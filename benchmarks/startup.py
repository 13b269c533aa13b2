"""The time until the first token: loading, compiling with an empty and with a filled cache, and the whole command.

Everything runs in fresh processes. `first token` is from the start of `ssmkit generate` to the first byte after the
prompt on its standard output, Python's own start and imports included.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._checkpoint import PROMPT, checkpoint
from ._loading import compile_programs, load
from ._process import run
from ._session import Settings, report
from .peers import reasons


_WEIGHTS = {"ssmkit": "float32", "ssmkit-bfloat16": "bfloat16", "ssmkit-int8": "int8"}


def measure(settings: Settings, prompt: int = 512, tokens: int = 16) -> dict[str, Any]:
    """All figures, of ssmkit and its variants."""
    names = [name for name in _WEIGHTS if settings.subjects is None or name in settings.subjects]
    skipped = reasons(names, settings.geometry)
    with checkpoint(settings.geometry, settings.checkpoints) as files:
        directory = files.directory
        rows = [row for name in names if name not in skipped for row in _loads(name, directory, settings.repeats)]
        rows += _compiles(settings.geometry, prompt, tokens, settings.repeats)
        rows += _commands(directory, tokens, settings.repeats)
    return report("startup", settings, rows, skipped=skipped, prompt=prompt, tokens=tokens)


def _loads(name: str, directory: Path, repeats: int) -> Iterator[dict[str, Any]]:
    found = [run(load, directory=directory, weights=_WEIGHTS[name]) for _ in range(repeats)]
    seconds = [result["load_s"] for result in found]
    peak = max(result["peak_bytes"] for result in found)
    yield {
        "what": f"load, {_WEIGHTS[name]}",
        "s": statistics.median(seconds),
        "seconds": seconds,
        "import_s": statistics.median(result["import_s"] for result in found),
        "peak_bytes": peak,
        "weight_bytes": found[0]["weight_bytes"],
        "peak_over_weights": peak / found[0]["weight_bytes"],
    }


def _compiles(geometry: str, prompt: int, tokens: int, repeats: int) -> Iterator[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for state in found:
                task = {"geometry": geometry, "prompt": prompt, "tokens": tokens, "cache": cache}
                found[state].append(run(compile_programs, **task))
    for kind in ("prompt", "decode"):
        for state, results in found.items():
            seconds = [result[f"{kind}_s"] for result in results]
            yield {"what": f"compile {kind}, {state} cache", "s": statistics.median(seconds), "seconds": seconds}


def _commands(directory: Path, tokens: int, repeats: int) -> Iterator[dict[str, Any]]:
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for taken in seconds.values():
                taken.append(_first_token(directory, tokens, Path(cache)))
    for state, taken in seconds.items():
        yield {
            "what": f"`ssmkit generate`, first token, {state} cache",
            "s": statistics.median(taken),
            "seconds": taken,
        }


def _first_token(directory: Path, tokens: int, cache: Path) -> float:
    """The seconds from the start of the command to its first token.

    **Raises:** `SystemExit` with the output of the command when it fails.
    """
    words = [sys.executable, "-m", "ssmkit", "generate", PROMPT, "--model", str(directory)]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        with subprocess.Popen(
            [*words, "--max-new-tokens", str(tokens), "--temperature", "0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment | {"SSMKIT_CACHE_DIR": str(cache)},
        ) as process:
            assert process.stdout is not None
            shown, first = b"", None
            while part := os.read(process.stdout.fileno(), 4096):
                shown += part
                if first is None and len(shown.strip()) > len(PROMPT.encode()):
                    first = time.perf_counter() - start
        if process.returncode != 0 or first is None:
            errors.seek(0)
            raise SystemExit(f"`ssmkit generate` failed: {errors.read().decode(errors='replace').strip()[-2000:]}")
    return first
