"""The platform that kernels are traced for."""

import contextlib

import jax

from .._types import checks_itself


TILE = 128
"""The numbers of one axis that a TPU stores side by side, along the lanes of a tile."""

_PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")

# The choice is part of the key of every jitted function, so that another choice traces the function again.
_chosen = jax.make_user_context(default_value=None)


def platform() -> str:
    """`"cpu"`, or the name of an accelerator: that of the default backend, unless `target` names another."""
    return _chosen.value or jax.default_backend()


@checks_itself
def target(platform: str) -> contextlib.AbstractContextManager[None]:
    """A context in which kernels are traced for another platform, so that they can be exported for it.

    **Arguments:**

    - `platform`: `"cpu"`, `"gpu"`, `"cuda"`, `"rocm"` or `"tpu"`.

    **Raises:** `ValueError` for another name.
    """
    if platform not in _PLATFORMS:
        raise ValueError(f"`platform` must be one of {', '.join(_PLATFORMS)}, got {platform!r}.")
    return _chosen(platform)
