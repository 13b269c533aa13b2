"""The project's tests on this device: of each file, how many hold, and which do not.

Tests run in processes of their own, with run-time checks of shapes. Warnings are no errors here: drivers have theirs.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ._environment import PACKAGES, device, environment
from ._recorder import FILE


# What depends on the device's arithmetic and on what its compiler makes of programs, in the order of the run.
FILES = """
    test_golden test_hlo test_kernels test_laws test_generate test_resume test_published test_kernel_forms test_rows
    test_long_sums test_slow_decays test_pairwise_decays test_quantize_products test_sampling test_layers test_operators
""".split()
_ROOT = Path(__file__).resolve().parents[1]


def measure(tests: list[str], workers: int, seconds: float | None) -> dict[str, Any]:
    """What becomes of every test.

    **Arguments:**

    - `tests`: names of files in `tests/`, without `.py`.
    - `workers`: processes side by side; 0 for one process alone, since a TPU serves one process at a time.
    - `seconds`: the time after which the rest is left out; `None` for no limit.

    **Raises:** `ValueError` for a file that does not exist.
    """
    paths = [_ROOT / "tests" / f"{name}.py" for name in tests]
    if missing := [path.stem for path in paths if not path.is_file()]:
        raise ValueError(f"no tests are called {', '.join(missing)} in {_ROOT / 'tests'}")
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record"
        record.touch()
        output = _run([*map(str, paths), *(["-n", str(workers)] if workers else [])], record, seconds)
        events = [json.loads(line) for line in record.read_text("utf-8").splitlines()]
    if not events:
        raise SystemExit(f"no test ran: {output[-2000:]}")
    done = [event for event in events if "test" in event]
    failures = [{"test": event["test"], "why": event["why"]} for event in done if event["outcome"] == "failed"]
    left = max((event["collected"] for event in events if "collected" in event), default=0) - len(done)
    content = {
        "command": "suite",
        "device": device(),
        "environment": environment(*PACKAGES),
        "workers": workers,
        "rows": _rows(done),
        "failures": failures,
        "skips": sorted({event["why"] for event in done if event["outcome"] == "skipped"}),
    }
    return content | ({"left": [f"{left} tests"]} if left > 0 else {})


def _run(words: list[str], record: Path, seconds: float | None) -> str:
    """Run pytest. At the end of the time it ends, with the processes that it started."""
    settings = dict(os.environ) | {FILE: str(record), "SSMKIT_TYPECHECK": "1", "PYTHONUNBUFFERED": "1"}
    settings.pop("JAX_COMPILATION_CACHE_DIR", None)  # some tests count compilations
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), settings.get("PYTHONPATH")]))
    options = ["-p", f"{__package__}._recorder", "-p", "no:cacheprovider", "-W", "default", "-m", "not slow"]
    words = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(_ROOT), *options, *words]
    place = {"cwd": _ROOT, "env": settings, "start_new_session": True, "text": True}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **place)
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


def _rows(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for event in done:
        name = Path(event["test"].split("::")[0]).stem
        row = rows.setdefault(name, {"file": name, "passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0})
        row[event["outcome"]] += 1
        row["seconds"] += event["seconds"]
    return list(rows.values())
