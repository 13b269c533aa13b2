"""A plugin of pytest that appends what becomes of each test to a file, a JSON object a line, as it happens."""

import json
import os
from typing import Any


FILE = "SSMKIT_RECORD"
"""The environment variable that names the file."""


def pytest_configure(config: Any) -> None:
    if not hasattr(config, "workerinput"):  # of xdist's processes, the one that hears of all tests
        config.pluginmanager.register(_Recorder(os.environ[FILE]))


class _Recorder:
    def __init__(self, path: str):
        self._path = path

    def pytest_collection_finish(self, session: Any) -> None:
        self._append({"collected": len(session.items)})

    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self._append({"collected": len(ids)})

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._append({"test": report.nodeid, "outcome": "failed", "why": _last_line(report), "seconds": 0.0})

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            why = None if report.passed else _last_line(report)
            self._append({"test": report.nodeid, "outcome": report.outcome, "why": why, "seconds": report.duration})

    def _append(self, event: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _last_line(report: Any) -> str:
    """The message of a failure, or the reason of a skipped test."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", None)
    return (crash or report.longreprtext).strip()[:400]
