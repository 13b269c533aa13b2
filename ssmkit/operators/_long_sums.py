"""Sums of many terms, as two numbers each.

A running sum in float32 is rounded at every term, and of equal terms often the same way: after 100,000 of them it is
wrong in the third or fourth digit. What an addition loses is a float32 number itself, which six more additions tell
exactly (Knuth, The Art of Computer Programming, volume 2, section 4.2.2). It is kept beside the sum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LongSum(NamedTuple):
    """The sum of the two, of which `total` carries all gradients."""

    total: Float[Array, "..."]
    rest: Float[Array, "..."]

    @classmethod
    def of(cls, term: Float[Array, "..."]) -> "LongSum":
        """A sum of one term."""
        return cls(term, jnp.zeros_like(term))

    def plus(self, other: "LongSum") -> "LongSum":
        """The sum of both, to 48 bits. What is infinite stays so."""
        total, lost = _added(self.total, other.total)
        return LongSum(*_added(total, self.rest + other.rest + lost))


def _added(a: Float[Array, "..."], b: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The rounded sum, and what rounding it lost."""
    total = a + b
    a, b, near = (jax.lax.stop_gradient(jnp.where(jnp.isfinite(total), x, jnp.zeros_like(x))) for x in (a, b, total))
    of_b = near - a
    return total, (a - (near - of_b)) + (b - of_b)
