"""Rendering of chat templates. A template is a program of whoever made a checkpoint, so that it runs apart.

It runs in the sandbox of jinja2, which lets it reach nothing but its variables. The sandbox bounds neither time nor
memory: `{{ 9 ** 9 ** 9 }}` would never end. It therefore runs in a process of its own, which has bounds for both.
"""

import atexit
import contextlib
import importlib.util
import marshal
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._shown import one_line


_SECONDS = 20.0
_LONGEST_REASON = 500
_PROGRAM = Path(__file__).with_name("_template_process.py")


class _Process:
    """A process that renders one template after the other."""

    def __init__(self):
        """**Raises:** `OSError` when the system starts no process."""
        command = [sys.executable, "-I", "-S", "-X", "utf8", os.fspath(_PROGRAM)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.owner = os.getpid()
        self._write(_homes())

    def ask(self, request: tuple[str, Mapping[str, Any]]) -> tuple[bytes, str] | None:
        """The letter and the text of the answer; `None` when the process has ended without one."""
        timer = threading.Timer(_SECONDS, self._process.kill)
        timer.start()
        try:
            self._write(request)
            assert self._process.stdout is not None
            head = self._process.stdout.read(9)
            length = int.from_bytes(head[1:], "little")
            content = self._process.stdout.read(length)
            return (head[:1], content.decode("utf-8", "surrogatepass")) if len(content) == length and head else None
        except BrokenPipeError:
            return None
        finally:
            timer.cancel()

    def end(self) -> None:
        """End the process, and wait for its end."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _write(self, request: Any) -> None:
        content = marshal.dumps(request)
        assert self._process.stdin is not None
        self._process.stdin.write(len(content).to_bytes(8, "little") + content)
        self._process.stdin.flush()


def _homes() -> list[str]:
    """The folders from which the process imports, besides Python's own.

    **Raises:** `ValueError` when a package is missing.
    """
    found = {name: importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")}
    if missing := [name for name, spec in found.items() if spec is None or spec.origin is None]:
        raise ValueError(f"chat templates need {missing[0]}: pip install {missing[0]}")
    return sorted({os.fspath(Path(spec.origin).parents[1]) for spec in found.values() if spec and spec.origin})


_lock = threading.Lock()
_running: list[_Process] = []


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text of a chat template.

    **Arguments:**

    - `template`: the template.
    - `variables`: its variables: texts, numbers, booleans, `None`, lists, tuples and dictionaries of these.

    **Raises:** `ValueError` when the template refuses the conversation, is no template, does what the sandbox forbids,
    or exceeds the bounds on time (20 seconds), memory (2 GiB) and text (64 Mi characters).
    """
    with _lock:
        process = _started()
        try:
            found = process.ask((template, variables))
        except BaseException:  # whatever it was, the rest of the answer is not for the next request
            _end()
            raise
        if found is None:
            _end()
    letter, text = found or (b"-", f"it takes more than {_SECONDS:g} seconds, or more memory than a template may have")
    if letter == b"!":
        raise ValueError(f"the chat template refuses this conversation: {one_line(text, _LONGEST_REASON)}")
    if letter == b"-":
        raise ValueError(f"the chat template cannot be rendered: {one_line(text, _LONGEST_REASON)}.")
    return text


def _started() -> _Process:
    """The running process; a fork starts its own."""
    if _running and _running[0].owner != os.getpid():
        _running.clear()
    if not _running:
        _running.append(_Process())
    return _running[0]


@atexit.register
def _end() -> None:
    while _running:
        process = _running.pop()
        if process.owner == os.getpid():
            process.end()
