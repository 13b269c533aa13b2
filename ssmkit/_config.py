"""Environment switches, read once when `ssmkit` is imported."""

import os
from collections.abc import Callable
from typing import Any, TypeVar


Function = TypeVar("Function", bound=Callable[..., Any])


_SWITCH = "SSMKIT_TYPECHECK"


def typecheck_requested() -> bool:
    """Whether `SSMKIT_TYPECHECK` is 1, which turns on run-time shape and type checks in the whole package."""
    return os.environ.get(_SWITCH) == "1"


def check_environment() -> None:
    """Check the environment. Modules that compute call it on import; `import ssmkit` alone and the command line do not.

    **Raises:** `ValueError` when `SSMKIT_TYPECHECK` is neither `0` nor `1`.
    """
    value = os.environ.get(_SWITCH, "0")
    if value not in ("", "0", "1"):
        raise ValueError(f"`{_SWITCH}` must be 0 or 1, got {value!r}. Unset it to run without checks.")


def install_typechecker() -> None:
    """Check every annotation of `ssmkit` with jaxtyping and beartype, from the next import on."""
    from jaxtyping import install_import_hook

    from . import _typecheck as _typecheck  # the hook looks for it in the package

    install_import_hook("ssmkit", "ssmkit._typecheck.checked")


def checks_itself(function: Function) -> Function:
    """Mark a public function, or a dataclass, that checks its arguments itself.

    `SSMKIT_TYPECHECK=1` does not check it again: one mistake has one message, with the switch and without.
    """
    function.__no_type_check__ = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
