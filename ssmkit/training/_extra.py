"""Packages of the extra `train`."""

import importlib


def require(package: str) -> None:
    """Make sure that a package of the extra can be imported.

    **Raises:** `ModuleNotFoundError` naming the extra.
    """
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(f"training needs {package}: pip install 'ssmkit[train]'", name=package) from None


require("optax")  # the rest of the package imports it
