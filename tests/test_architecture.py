"""How the package is built: who may subclass whom, and how long a file may be."""

import abc
import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types

import equinox as eqx
import pytest
from helpers import is_abstract, module_classes
from source_files import BENCHMARK_FILES, CORE_FILES, MODEL_FILES, TEST_FILES, named

import ssmkit
import ssmkit.benchmarks
import ssmkit.models
from ssmkit._final import is_hook
from ssmkit.models import toy


LONGEST_FILE = 300

LONGEST_TOY = 60


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


@named(CORE_FILES + MODEL_FILES + BENCHMARK_FILES + TEST_FILES)
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_every_file_is_looked_at():
    """The lists above are not empty by accident, and the models are not counted among the core."""
    assert {"_recurrence.py", "_scalar.py"} <= {path.name for path in CORE_FILES}
    assert {"mamba2.py", "toy.py"} <= {path.name for path in MODEL_FILES}
    assert not {path.resolve() for path in CORE_FILES} & {path.resolve() for path in MODEL_FILES}
