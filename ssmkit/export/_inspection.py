"""A first reading of programs in a separate process.

MLIR's reader is written for programs that MLIR wrote: a changed byte can crash the process that reads it. Therefore
another interpreter, which may crash, reads and checks every program before this process reads it.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

from ..checkpoint import CheckpointError


_SECONDS = 120.0
_INSPECTED: set[str] = set()
"""The SHA-256 of programs that this process has found harmless."""


def inspect_programs(programs: Mapping[str, bytes]) -> dict[str, str]:
    """Find the problems of programs without reading them in this process.

    **Arguments:**

    - `programs`: serialised programs of `jax.export`, by name.

    **Returns:** the reasons why programs must not be read, by name; sound programs are not listed.

    **Raises:** `CheckpointError` when no interpreter can be started.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in programs.items()}
    pending = {name: content for name, content in programs.items() if digests[name] not in _INSPECTED}
    reasons: dict[str, str] = {}
    while pending:
        answers, ending = _ask(list(pending.values()))
        for (name, _), answer in zip(list(pending.items()), answers, strict=False):
            del pending[name]
            if answer is None:
                _INSPECTED.add(digests[name])
            else:
                reasons[name] = answer
        if pending:  # the reader ended at the first that has no answer
            reasons[next(iter(pending))] = f"not readable by this JAX ({ending})"
            del pending[next(iter(pending))]
    return reasons


def _ask(programs: list[bytes]) -> tuple[list[str | None], str]:
    """The answers of another interpreter, up to the program that crashed it, and how it ended."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", str(pathlib.Path(__file__).with_name("_inspector.py"))]
    sent = b"".join(len(content).to_bytes(8, "little") + content for content in programs)
    try:
        done = subprocess.run(
            command, input=sent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, timeout=_SECONDS
        )
        output, ending = done.stdout, f"its reader ended with status {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output, ending = error.stdout or b"", f"its reader took more than {_SECONDS:.0f} s"
    except OSError as error:
        raise CheckpointError(f"Programs are read by another process, and none could be started: {error}.") from error
    *lines, _ = output.split(b"\n")
    if lines[:1] != [b"ready"]:
        raise CheckpointError(
            f"Programs are read by another process, `{sys.executable}`, which cannot import JAX ({ending})."
        )
    return [json.loads(line) for line in lines[1:]], ending
