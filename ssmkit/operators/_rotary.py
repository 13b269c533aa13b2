"""Rotary position embedding."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "time some dim"], position: Int[Array, " time"], theta: float, rotary_dim: int
) -> Float[Array, "time some dim"]:
    r"""Rotate pairs of features by angles that grow with the position (arXiv 2104.09864, equation 34).

    As in HF transformers, feature $i$ of the first half of the `rotary_dim` features and feature $i$ of their second
    half are a pair. The pair turns by $p \, \theta^{-2 i / d}$ at position $p$. Features past `rotary_dim` stay.

    **Arguments:**

    - `x`: queries or keys.
    - `position`: the position of every token.
    - `theta`: the base of the wavelengths.
    - `rotary_dim`: $d$, even.
    """
    half = rotary_dim // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (position.astype(jnp.float32)[:, None] * frequency[None])[:, None, :]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b, rest = x[..., :half], x[..., half:rotary_dim], x[..., rotary_dim:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, rest], axis=-1)
