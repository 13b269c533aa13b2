"""A fresh Python process for tasks whose memory, or whose first run, is measured."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(task: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """Run a task in a fresh Python process, and return its result.

    **Arguments:**

    - `task`: a function of a module. The process imports that module, and what it imports, before the task starts.
    - `arguments`: the arguments of the task, as JSON values; paths become text.

    **Raises:** `SystemExit` with the output of the process when it fails.
    """
    settings = dict(os.environ)
    if __package__ == "benchmarks":  # from a checkout, wherever the caller stands
        root = str(Path(__file__).resolve().parents[1])
        settings["PYTHONPATH"] = os.pathsep.join(filter(None, [root, settings.get("PYTHONPATH")]))
    place = [task.__module__, task.__name__]
    words = [sys.executable, "-m", f"{__package__}._process", *place, json.dumps(arguments, default=str)]
    done = subprocess.run(words, env=settings, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{task.__name__} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    _module, _task, _arguments = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(_module), _task)(**json.loads(_arguments))))
