"""How the package is built: who may subclass, import and know whom, and how long a file may be."""

import abc
import ast
import dataclasses
import graphlib
import inspect
import io
import os
import subprocess
import sys
import textwrap
import tokenize
import types
from pathlib import Path

import equinox as eqx
import pytest
from helpers import is_abstract, module_classes

import ssmkit
import ssmkit.benchmarks
import ssmkit.models
from ssmkit._final import is_hook
from ssmkit.models import toy


CORE = Path(ssmkit.__file__).parent
MODELS = Path(ssmkit.models.__file__).resolve().parent
BENCHMARKS = Path(ssmkit.benchmarks.__file__).resolve().parent  # they measure models
CORE_FILES = sorted(
    path for path in CORE.rglob("*.py") if not any(map(path.resolve().is_relative_to, (MODELS, BENCHMARKS)))
)
MODEL_FILES = sorted(MODELS.rglob("*.py"))
BENCHMARK_FILES = sorted(BENCHMARKS.rglob("*.py"))
HEAVY = {"torch", "transformers", "optax", "matplotlib", "tokenizers", "typer", "huggingface_hub", "tensorflow", "flax"}
LONGEST_FILE = 300
LONGEST_TOY = 60


def named(paths: list[Path]):
    """Parametrize `path` with readable ids."""
    root = CORE.parent
    name = lambda path: str(path.relative_to(MODELS.parent if path.is_relative_to(MODELS) else root))
    return pytest.mark.parametrize("path", [pytest.param(path, id=name(path)) for path in paths])


# Abstract or final.


def offences(cls: type) -> list[str]:
    """What keeps a class from being abstract or final, with no concrete method overridden and no field declared twice.

    Fields and `__init__` stand in one class, but for this: an abstract class may have fields that every subclass has,
    keyword-only so that they stand in nobody's way, and no subclass declares them again.
    """
    bases = [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base) and base is not eqx.Module]
    found = [f"{cls.__name__} subclasses {base.__name__}, which is concrete" for base in bases if not is_abstract(base)]
    for name, method in vars(cls).items():
        # `__init__` is made anew for every class by `dataclasses`; what else has underscores belongs to Python.
        if not isinstance(method, types.FunctionType | property) or (name.startswith("__") and name != "__call__"):
            continue
        for base in bases:
            inherited = vars(base).get(name)
            open_ = getattr(inherited, "__isabstractmethod__", False) or is_hook(inherited)
            if inherited is not None and not open_:
                found.append(f"{cls.__name__}.{name} overrides {base.__name__}.{name}")
    for name in own_fields(cls):
        if is_abstract(cls) and not cls.__dataclass_fields__[name].kw_only:
            found.append(f"{cls.__name__}.{name} is a field of an abstract class, but not keyword-only")
        found += [
            f"{cls.__name__}.{name} declares {base.__name__}.{name} again" for base in bases if name in own_fields(base)
        ]
    return found


def own_fields(cls: type) -> set[str]:
    """The fields that a class itself declares; an `eqx.AbstractVar` is none."""
    return vars(cls).get("__annotations__", {}).keys() & cls.__dataclass_fields__.keys() - abstract_variables(cls)


def abstract_variables(cls: type) -> frozenset[str]:
    return getattr(cls, "__abstractvars__", frozenset()) | getattr(cls, "__abstractclassvars__", frozenset())


@pytest.mark.parametrize("cls", [pytest.param(cls, id=f"{cls.__module__}.{cls.__name__}") for cls in module_classes()])
def test_every_class_is_abstract_or_final(cls):
    assert not offences(cls)


def test_abstract_classes_are_called_so():
    """With the one exception whose name is part of the public surface."""
    names = {cls.__name__ for cls in module_classes() if is_abstract(cls)}
    assert {name for name in names if not name.startswith("Abstract")} == {"DiagonalChunkedRecurrence"}
    assert not [cls for cls in module_classes() if cls.__name__.startswith("Abstract") and not is_abstract(cls)]


def test_offences_would_be_noticed():
    class FromConcrete(ssmkit.RMSNorm):
        pass

    class AbstractShape(eqx.Module):
        size: int
        scale: float = eqx.field(default=1.0, kw_only=True)

        @abc.abstractmethod
        def area(self) -> int:
            pass

        def twice(self):
            return 2 * self.area()

    class Square(AbstractShape):
        scale: float = 2.0

        def area(self):
            return self.size**2

        def twice(self):
            return 0

    assert offences(FromConcrete) == ["FromConcrete subclasses RMSNorm, which is concrete"]
    assert offences(AbstractShape) == ["AbstractShape.size is a field of an abstract class, but not keyword-only"]
    assert offences(Square) == [
        "Square.twice overrides AbstractShape.twice",
        "Square.scale declares AbstractShape.scale again",
    ]
    assert {cls.__name__ for cls in module_classes()} >= {"DiagonalChunkedRecurrence", "AbstractMambaConfig"}


AGREE = "what is computed over many tokens and over one must agree. Write `mix`, or subclass `ssmkit.AbstractMixer`."
BLOCKS = "write an `ssmkit.AbstractMixer` for its blocks instead."


@pytest.mark.parametrize(
    ("owner", "name", "home", "reason"),
    [
        (ssmkit.AbstractRecurrentMixer, "prefill", "AbstractRecurrentMixer", AGREE),
        (ssmkit.AbstractRecurrentMixer, "step", "AbstractRecurrentMixer", AGREE),
        (ssmkit.AbstractResidualLanguageModel, "forward", "AbstractResidualLanguageModel", BLOCKS),
        (ssmkit.AbstractResidualLanguageModel, "init_cache", "AbstractResidualLanguageModel", BLOCKS),
        (ssmkit.AbstractResidualLanguageModel, "__call__", "AbstractLanguageModel", BLOCKS),
        (ssmkit.AbstractResidualLanguageModel, "stop_tokens", "AbstractLanguageModel", BLOCKS),
    ],
)
def test_what_docstrings_call_final_is(owner, name, home, reason):
    """A class that writes it again cannot be made, nor one that has it from elsewhere or names a field so.

    What recurrences say is tested with their laws.
    """
    says = f"Own.{name} overrides `{home}.{name}`, which is final: {reason}"
    elsewhere = type("Elsewhere", (), {name: lambda self: None})
    for bases, own in [((owner,), {name: lambda self: None}), ((elsewhere, owner), {})]:
        with pytest.raises(TypeError) as caught:
            types.new_class("Own", bases, exec_body=lambda space, own=own: space.update(own))
        assert str(caught.value) == says
    with pytest.raises(TypeError) as caught:
        types.new_class("Own", (owner,), exec_body=lambda space: space.update(__annotations__={name: int}))
    assert str(caught.value) == says


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

    Of its own package it may use what it likes, of `self` too.
    """
    found = []
    for module, name in imports(source, package):
        if module.split(".")[0] == "ssmkit" and not f"{module}.".startswith(f"{package}."):
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
    *("text", "layers", "kernels", "operators", "mixers", "_language_model", "_residual_model", "_model_config"),
    *("_arguments", "checkpoint", "generation", "evaluation", "export", "training", "testing", "cli", "__main__"),
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


# How long.


def lines_of_code(source: str) -> int:
    """Lines that hold something else than comments and docstrings."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in nothing:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def test_lines_of_code_are_counted():
    source = '''
    """Module."""

    class A:
        """Doc,
        more doc."""

        x = 1  # one

        # nothing
        def f(self, a,
              b):
            """Doc."""
            return """two
            lines"""
    '''
    assert lines_of_code(textwrap.dedent(source)) == 6


def test_a_whole_language_model_takes_few_lines():
    """From its recurrence to its logits, the toy model is short: that is what the abstractions are for."""
    classes = [cls for _, cls in inspect.getmembers(toy, inspect.isclass) if cls.__module__ == toy.__name__]
    assert ssmkit.models.ToySSM in classes
    assert len(classes) == 3
    assert sum(lines_of_code(textwrap.dedent(inspect.getsource(cls))) for cls in classes) <= LONGEST_TOY


@named(CORE_FILES + MODEL_FILES + BENCHMARK_FILES)
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_every_file_is_looked_at():
    """The lists above are not empty by accident, and the models are not counted among the core."""
    assert {"_recurrence.py", "_scalar.py"} <= {path.name for path in CORE_FILES}
    assert {"mamba2.py", "toy.py"} <= {path.name for path in MODEL_FILES}
    assert not {path.resolve() for path in CORE_FILES} & {path.resolve() for path in MODEL_FILES}
