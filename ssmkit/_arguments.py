"""What several public functions ask of arguments that they take alike."""

import os
import pathlib
from typing import Any

from ._language_model import AbstractLanguageModel
from ._types import shown


def check_model(model: Any) -> None:
    """**Raises:** `ValueError` when it is no language model."""
    if not isinstance(model, AbstractLanguageModel):
        is_class = isinstance(model, type)
        got = f"the class `{model.__name__}` itself: build one with it" if is_class else type(model).__name__
        raise ValueError(f"`model` must be an `ssmkit.AbstractLanguageModel`, got {got}.")


def path_of(name: str, given: Any, error: type[ValueError] = ValueError) -> pathlib.Path:
    """A path that a user gave.

    **Arguments:**

    - `name`: of the argument.
    - `given`: what stands there.
    - `error`: what the function documents for bad arguments.

    **Raises:** `error` when it is no path.
    """
    if not isinstance(given, str | os.PathLike):
        raise error(f"`{name}` must be a path, got {shown(given)}.")
    return pathlib.Path(os.fsdecode(given))


def check_is(name: str, given: Any, kind: type, remedy: str, error: type[ValueError] = ValueError) -> None:
    """**Raises:** `error`, saying what to give instead, when an argument is not of a class."""
    if not isinstance(given, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise error(f"`{name}` must be {article} `{kind.__name__}`, got {shown(given)}. {remedy}")


def check_callable(name: str, given: Any) -> None:
    """**Raises:** `ValueError` when an argument cannot be called."""
    if not callable(given):
        raise ValueError(f"`{name}` must be a function, got {shown(given)}.")
