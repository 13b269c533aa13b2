"""Who may know whom, and what an import costs."""

import ast
import graphlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from source_files import BENCHMARK_FILES, BENCHMARKS, CORE, CORE_FILES, MODEL_FILES, MODELS, named

import ssmkit
import ssmkit.benchmarks
import ssmkit.models


HEAVY = {
    "torch",
    "transformers",
    "optax",
    "matplotlib",
    "tokenizers",
    "typer",
    "huggingface_hub",
    "tensorflow",
    "flax",
    "jinja2",
}


# Who may know whom.


def imports(source: str, package: str) -> list[tuple[str, str | None]]:
    """Every `(module, name)` that a file of this package imports; the name is `None` for a whole module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            found += [(module, alias.name) for alias in node.names]
    return found


def package_of(path: Path) -> str:
    """The package that a file of the repository belongs to, which relative imports start from."""
    real = path.resolve()
    apart = [home for home in (MODELS, BENCHMARKS) if real.is_relative_to(home)]
    parts = real.relative_to(*apart).parts if apart else path.relative_to(CORE).parts
    return ".".join(["ssmkit", *(home.name for home in apart), *parts[:-1]])


def private_uses(source: str, package: str) -> list[str]:
    """Underscored modules and names of `ssmkit` that a file imports, and underscored attributes it reads.

    Of its own package it may use what it likes, of `self` too; the models' packages are one.
    """
    own = "ssmkit.models" if package.startswith("ssmkit.models.") else package
    found = []
    for module, name in imports(source, package):
        if module.split(".")[0] == "ssmkit" and not f"{module}.".startswith(f"{own}."):
            path = f"{module}.{name}" if name else module
            found += [path] * any(part.startswith("_") for part in path.split("."))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            found += [ast.unparse(node)] * (ast.unparse(node.value) != "self")
    return found


@named(MODEL_FILES)
def test_models_use_public_names_only(path):
    source = path.read_text()
    assert not private_uses(source, package_of(path))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ssmkit":
            assert hasattr(ssmkit, node.attr), f"ssmkit.{node.attr} does not exist"


def test_private_uses_would_be_noticed():
    bad = """
    import ssmkit.layers._linear
    from ssmkit import _types, Linear
    from ssmkit.kernels._scalar import enter
    from ..mixers._mixer import Cache
    from ._own import helper
    ssmkit.operators._conv.CausalConv1d
    """
    assert private_uses(textwrap.dedent(bad), "ssmkit.models") == [
        "ssmkit.layers._linear",
        "ssmkit._types",
        "ssmkit.kernels._scalar.enter",
        "ssmkit.mixers._mixer.Cache",
        "ssmkit.operators._conv",
    ]


def imports_models(source: str, package: str) -> bool:
    """Whether a file imports `ssmkit.models`, by whatever spelling."""
    found = (f"{module}.{name}" if name else module for module, name in imports(source, package))
    return any(f"{path}.".startswith("ssmkit.models.") for path in found)


@named(CORE_FILES)
def test_the_core_never_imports_models(path):
    """The registry of architectures names their module by a string, which is no import."""
    assert not imports_models(path.read_text(), package_of(path))


@pytest.mark.parametrize(
    "line, package",
    [
        ("import ssmkit.models", "ssmkit"),
        ("from ssmkit.models import Mamba2", "ssmkit"),
        ("from ssmkit import models", "ssmkit"),
        ("from . import models", "ssmkit"),
        ("from .models.mamba2 import Mamba2", "ssmkit"),
        ("from ..models import Mamba2", "ssmkit.checkpoint"),
        ("def late():\n    from .. import models", "ssmkit.checkpoint"),
    ],
)
def test_importing_models_would_be_noticed(line, package):
    assert imports_models(line, package)
    assert not imports_models("from .models import x\nfrom . import _models\nimport models", "ssmkit.cli")


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own."""
    environment = os.environ | {"SSMKIT_TYPECHECK": "0"} | environment
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment)


def test_importing_needs_nothing_heavy():
    """Neither does the use of every public name, but for training, which is an extra."""
    run = fresh("import sys, ssmkit; print(*sys.modules)")
    assert run.returncode == 0, run.stderr
    assert not {name.partition(".")[0] for name in run.stdout.split()} & (HEAVY | {"jax", "numpy", "equinox"})
    run = fresh("import sys; from ssmkit import *; print(*sys.modules)")
    assert run.returncode == 0, run.stderr
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert {"ssmkit", "equinox", "jax"} <= loaded
    assert not loaded & HEAVY
    assert "ssmkit.training" not in run.stdout.split()


def test_public_names():
    """Each can be had as an attribute after a bare import, in a process that imported nothing else."""
    code = """
import ssmkit
assert isinstance(ssmkit.models.GLAMixer, type) and callable(ssmkit.training.fit) and ssmkit.export
assert ssmkit.generate is ssmkit.generation._generate.generate and "generate" in vars(ssmkit)
assert not hasattr(ssmkit, "nonsense")
try:
    from ssmkit import nonsense
except ImportError:
    print(ssmkit.__version__)
"""
    run = fresh(code)
    assert (run.returncode, run.stdout) == (0, f"{ssmkit.__version__}\n"), run.stderr
    assert {*ssmkit.__all__, "training", "__version__"} == set(dir(ssmkit))
    assert all(getattr(ssmkit, name) is not None for name in dir(ssmkit))


@pytest.mark.parametrize("package", ["optax", "matplotlib"])
def test_training_names_its_extra(package):
    use = {"optax": "", "matplotlib": "; training.LossCurve(pathlib.Path('.')).plot()"}[package]
    code = f"import sys, pathlib, ssmkit; sys.modules[{package!r}] = None; from ssmkit import training{use}"
    run = fresh(code)
    message = f"ModuleNotFoundError: training needs {package}: pip install 'ssmkit[train]'"
    assert run.stderr.splitlines()[-1] == message
    assert run.returncode == 1


def test_a_wrong_switch_is_named():
    """By everything that computes; the command line must be able to say it in a line."""
    run = fresh("import ssmkit.cli; import ssmkit.models", SSMKIT_TYPECHECK="x")
    assert run.stderr.splitlines()[-1].startswith("ValueError: `SSMKIT_TYPECHECK` must be 0 or 1, got 'x'")
    assert "import ssmkit.models" not in run.stderr.splitlines()[1] and "_config.py" in run.stderr


def needs_of(paths: list[Path], late: bool = False) -> dict[str, set[str]]:
    """The modules, and the packages on the way to them, that every module of these imports when it is imported.

    **Arguments:**

    - `paths`: of the modules.
    - `late`: also what their functions import when they are called.
    """
    names = {f"{package_of(path)}.{path.stem}".removesuffix(".__init__"): path for path in paths}
    chain = lambda name: {name[:end] for end, letter in enumerate(name + ".") if letter == "."}
    needs = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        top = [node for node in (ast.walk(tree) if late else tree.body) if isinstance(node, ast.ImportFrom)]
        found = imports("\n".join(map(ast.unparse, top)), package_of(path))
        places = set().union(*(chain(f"{module}.{own}") for module, own in found))
        needs[name] = places & names.keys() - chain(name)
    return needs


def test_imports_have_no_circle():
    """Whichever module comes first, as each may where names are imported on first use."""
    needs = needs_of(CORE_FILES)
    assert needs["ssmkit.operators._recurrence"] >= {"ssmkit.kernels", "ssmkit._types"} and "ssmkit.export" in needs
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError

    needs = needs_of(BENCHMARK_FILES, late=True)
    assert needs["ssmkit.benchmarks.train"] >= {"ssmkit.benchmarks._process"} <= needs["ssmkit.benchmarks.startup"]
    graphlib.TopologicalSorter(needs).prepare()


# The rooms of the house. Each may use those before it and its own, and so may the modules at the root that are named.
ROOMS = (
    *("text", "layers", "kernels", "operators", "mixers", "_language_model", "_residual_model", "_scan_layers"),
    *(
        "parallel",
        "_model_config",
        "_arguments",
        "checkpoint",
        "generation",
        "evaluation",
        "export",
        "training",
        "compilation",
    ),
    *("testing", "cli", "__main__"),
)


def uphill(needs: dict[str, set[str]]) -> list[str]:
    """Imports of a room that comes later."""
    level = lambda name: ROOMS.index(room) if (room := name.split(".")[1]) in ROOMS else -1
    return [
        f"{name} -> {other}"
        for name, others in needs.items()
        for other in others
        if name.count(".") and other.count(".") and level(other) > level(name)
    ]


def test_no_import_runs_back_up():
    needs = needs_of(CORE_FILES)
    packages = {path.parent.name for path in CORE_FILES if path.parent != CORE}
    assert packages <= set(ROOMS)
    assert not uphill(needs)
    assert uphill({"ssmkit.kernels._step": {"ssmkit.operators"}, "ssmkit._types": {"ssmkit.text._json"}}) == [
        "ssmkit.kernels._step -> ssmkit.operators",
        "ssmkit._types -> ssmkit.text._json",
    ]
