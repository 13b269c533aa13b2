"""Functions that act on each number alone, by name: so that a layer that has one can be written as data."""

from collections.abc import Callable

import jax
from jaxtyping import Array

from .._types import checks_itself, shown
from ._linear import silu


_NAMES = ("elu", "gelu", "relu", "sigmoid", "silu", "softplus", "tanh")


@checks_itself
def activation_of(name: str | Callable[[Array], Array], *, argument: str = "activation") -> Callable[[Array], Array]:
    """The activation of a name.

    **Arguments:**

    - `name`: that of a function of `jax.nn`: elu, gelu (approximated with tanh, as JAX's is by default), relu,
        sigmoid, silu, softplus or tanh. A function stands for itself; what has one cannot be written as data.
    - `argument`: what the caller calls it, for the message.

    **Returns:** the function; `silu` is `ssmkit.silu`.

    **Raises:** `ValueError` for anything else.
    """
    if callable(name):
        return name
    if not isinstance(name, str) or name not in _NAMES:
        raise ValueError(f"`{argument}` must be one of {', '.join(_NAMES)}, or a function, got {shown(name)}.")
    return silu if name == "silu" else getattr(jax.nn, name)
