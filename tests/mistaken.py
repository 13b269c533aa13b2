"""Recurrences that return something wrong, and what is said about it."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

import ssmkit


HEADS, GROUPS, KEY, VALUE, TIME = 4, 2, 3, 5, 6
SHAPE = (HEADS, KEY, VALUE)


class Mistaken(ssmkit.DiagonalChunkedRecurrence[Array]):
    """Good coefficients, but for what is changed."""

    changes: dict = eqx.field(static=True)
    state_shape: tuple[int, int, int] = eqx.field(static=True, default=SHAPE)

    def coefficients(self, x):
        shapes = dict(log_decay=(HEADS, 1), write=(GROUPS, KEY), value=(HEADS, VALUE), read=(GROUPS, KEY))
        fields = {name: jnp.zeros(shape, jnp.float32) + x for name, shape in shapes.items()}
        fields |= {
            name: change(fields[name]) if callable(change) else jnp.zeros(change, jnp.float32)
            for name, change in self.changes.items()
        }
        return ssmkit.Coefficients(**fields)


class Pair(ssmkit.DiagonalChunkedRecurrence[Array]):
    """Returns something else."""

    state_shape: tuple[int, int, int] = eqx.field(static=True, default=SHAPE)

    def coefficients(self, x):
        return x, x


def message_of(function) -> str:
    """The message of the error that this raises, with its type."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"
