"""Elementwise functions by name, so that a layer with an activation can be described by data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import checks_itself, shown
from ._linear import silu


def gelu_exact(x: Array) -> Array:
    r"""The function $x \, \Phi(x)$, elementwise, with the normal distribution's $\Phi$ itself (arXiv 1606.08415)."""
    return jax.nn.gelu(x, approximate=False)


def relu2(x: Array) -> Array:
    r"""The function $\max(x, 0)^2$, elementwise (arXiv 2109.08668)."""
    return jnp.square(jax.nn.relu(x))


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "gelu_exact": gelu_exact,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "relu2": relu2,
    "sigmoid": jax.nn.sigmoid,
    "silu": silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}


@checks_itself
def activation_of(name: str | Callable[[Array], Array], *, argument: str = "activation") -> Callable[[Array], Array]:
    """The activation of a given name.

    **Arguments:**

    - `name`: elu, gelu (approximated with tanh, JAX's default; PyTorch's name gelu_pytorch_tanh means the same),
        gelu_exact (which PyTorch calls gelu), relu, relu2 (the square of relu), sigmoid, silu, softplus or tanh. A
        function is returned unchanged, but a layer with a function cannot be described by data.
    - `argument`: the caller's name for this argument, for the message.

    **Returns:** the function: that of `jax.nn`, except that `silu` is `ssmkit.silu`.

    **Raises:** `ValueError` for anything else.
    """
    if callable(name):
        return name
    if not isinstance(name, str) or name not in _FUNCTIONS:
        raise ValueError(f"`{argument}` must be one of {', '.join(_FUNCTIONS)}, or a function, got {shown(name)}.")
    return _FUNCTIONS[name]
