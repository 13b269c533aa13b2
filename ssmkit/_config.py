"""Environment switches, read once when `ssmkit` is imported."""

import os


def typecheck_requested() -> bool:
    """Whether `SSMKIT_TYPECHECK` asks for run-time shape and type checks in the whole package.

    **Raises:** `ValueError` when the variable is neither `0` nor `1`.
    """
    value = os.environ.get("SSMKIT_TYPECHECK", "0")
    if value not in ("0", "1"):
        raise ValueError(f"`SSMKIT_TYPECHECK` must be 0 or 1, got {value!r}. Unset it to run without checks.")
    return value == "1"


def install_typechecker() -> None:
    """Check every annotation of `ssmkit` with jaxtyping and beartype, from the next import on."""
    from jaxtyping import install_import_hook

    install_import_hook("ssmkit", "beartype.beartype")
