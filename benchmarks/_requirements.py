"""The packages that the benchmarks and the tests need, as `pyproject.toml` has them. It needs no package itself.

`python -m benchmarks._requirements` prints those that this Python lacks; with `--all`, every one.
"""

import importlib.metadata
import pathlib
import re
import sys
import tomllib


def requirements(extra: str = "test") -> list[str]:
    """The requirements of the project, and of an extra with the extras that it names."""
    path = pathlib.Path(__file__).resolve().parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text("utf-8"))["project"]
    found, asked = list(project["dependencies"]), [extra]
    for name in asked:
        for requirement in project["optional-dependencies"][name]:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
            found += [] if own else [requirement]
            asked += own[1].split(",") if own else []
    return sorted(set(found))


def lacking() -> list[str]:
    """The requirements that are not installed, or in an older version."""
    return [requirement for requirement in requirements() if not _met(requirement)]


def _met(requirement: str) -> bool:
    name, _, least = requirement.partition(">=")
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    numbers = lambda text: [int(part) for part in re.findall(r"\d+", text)]
    return numbers(version) >= numbers(least)


if __name__ == "__main__":
    print("\n".join(requirements() if "--all" in sys.argv else lacking()))
