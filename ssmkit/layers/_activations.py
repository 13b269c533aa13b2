"""Elementwise functions by name, so that a layer with an activation can be described by data."""

from collections.abc import Callable

import jax
from jaxtyping import Array

from .._types import checks_itself, shown
from ._linear import silu


_NAMES = ("elu", "gelu", "relu", "sigmoid", "silu", "softplus", "tanh")


@checks_itself
def activation_of(name: str | Callable[[Array], Array], *, argument: str = "activation") -> Callable[[Array], Array]:
    """The activation of a given name.

    **Arguments:**

    - `name`: the name of a function of `jax.nn`: elu, gelu (approximated with tanh, JAX's default), relu, sigmoid,
        silu, softplus or tanh. A function is returned unchanged, but a layer with a function cannot be described by
        data.
    - `argument`: the caller's name for this argument, for the message.

    **Returns:** the function; `silu` is `ssmkit.silu`.

    **Raises:** `ValueError` for anything else.
    """
    if callable(name):
        return name
    if not isinstance(name, str) or name not in _NAMES:
        raise ValueError(f"`{argument}` must be one of {', '.join(_NAMES)}, or a function, got {shown(name)}.")
    return silu if name == "silu" else getattr(jax.nn, name)
