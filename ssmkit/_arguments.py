"""Checks of arguments that several public functions share."""

import os
import pathlib
from typing import Any

from ._language_model import AbstractLanguageModel
from ._types import shown


def check_model(model: Any) -> None:
    """Check that `model` is a language model.

    **Raises:** `ValueError` when it is not.
    """
    if not isinstance(model, AbstractLanguageModel):
        is_class = isinstance(model, type)
        got = f"the class `{model.__name__}` itself: build one with it" if is_class else type(model).__name__
        raise ValueError(f"`model` must be an `ssmkit.AbstractLanguageModel`, got {got}.")


def path_of(name: str, given: Any, error: type[ValueError] = ValueError) -> pathlib.Path:
    """Convert an argument to a path.

    **Arguments:**

    - `name`: the name of the argument, for the message.
    - `given`: the argument.
    - `error`: the exception class that the calling function documents.

    **Raises:** `error` when `given` is not a path.
    """
    if not isinstance(given, str | os.PathLike):
        raise error(f"`{name}` must be a path, got {shown(given)}.")
    return pathlib.Path(os.fsdecode(given))


def check_is(name: str, given: Any, kind: type, remedy: str, error: type[ValueError] = ValueError) -> None:
    """Check that an argument is an instance of `kind`.

    **Raises:** `error`, with the remedy, when it is not.
    """
    if not isinstance(given, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise error(f"`{name}` must be {article} `{kind.__name__}`, got {shown(given)}. {remedy}")


def check_callable(name: str, given: Any) -> None:
    """Check that an argument can be called.

    **Raises:** `ValueError` when it cannot.
    """
    if not callable(given):
        raise ValueError(f"`{name}` must be a function, got {shown(given)}.")
