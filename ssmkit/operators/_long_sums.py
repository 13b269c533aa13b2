"""Sums of many terms, each stored as two numbers.

A running sum in float32 is rounded at every term, and for equal terms often in the same direction. After 100,000 terms
its third or fourth digit is wrong. The rounding error of an addition is itself a float32 number, and six more additions
compute it exactly (Knuth, The Art of Computer Programming, volume 2, section 4.2.2). It is stored beside the sum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LongSum(NamedTuple):
    """A sum as two numbers that are added. `total` carries all gradients."""

    total: Float[Array, "..."]
    rest: Float[Array, "..."]

    @classmethod
    def of(cls, term: Float[Array, "..."]) -> "LongSum":
        """A sum of one term."""
        return cls(term, jnp.zeros_like(term))

    def plus(self, other: "LongSum") -> "LongSum":
        """The sum of both, to 48 bits. Infinities stay infinite."""
        total, lost = _added(self.total, other.total)
        return LongSum(*_added(total, self.rest + other.rest + lost))


def _added(a: Float[Array, "..."], b: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The rounded sum, and its rounding error."""
    total = a + b
    a, b, near = (jax.lax.stop_gradient(jnp.where(jnp.isfinite(total), x, jnp.zeros_like(x))) for x in (a, b, total))
    of_b = near - a
    return total, (a - (near - of_b)) + (b - of_b)
