"""Rotary position embedding, and how its angles are scaled for long contexts."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._construction import check_integers, positive
from .._table import Table, frozen


_FACTORS = {  # for each type of scaling the numbers that it needs, and those that it may have
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    ),
}


def checked_rotations(theta: float, rotary_dim: int, head_dim: int, scaling: Mapping[str, Any] | None) -> Table | None:
    """Check what says how features are rotated.

    **Arguments:**

    - `theta`: as for `frequencies`.
    - `rotary_dim`: how many features of `head_dim` are rotated.
    - `head_dim`: the number of features.
    - `scaling`: as for `frequencies`, with any keys; those that are `None` are left out.

    **Returns:** the scaling, as a table that cannot be changed.

    **Raises:** `ValueError` naming the argument that does not fit.
    """
    positive("rope_theta", theta)
    check_integers(rotary_dim=rotary_dim)
    if not (0 < rotary_dim <= head_dim and rotary_dim % 2 == 0):
        raise ValueError(
            f"`rotary_dim` must be even and in [2, `head_dim` = {head_dim}], as rotations turn pairs of features, "
            f"got {rotary_dim}: give another, or `rope_theta=None` for no rotations."
        )
    if scaling is None:
        return None
    if not isinstance(scaling, Mapping) or scaling.get("rope_type") not in _FACTORS:
        raise ValueError(
            f"`rope_scaling` must be a table whose `rope_type` is one of {', '.join(_FACTORS)}, got {scaling!r}; other "
            "ways to scale rotations are not supported."
        )
    given = {name: value for name, value in scaling.items() if value is not None}
    kind, truncate = given.pop("rope_type"), given.pop("truncate", True)
    needed, allowed = _FACTORS[kind]
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"`rope_scaling` of the type {kind} must have {', '.join(missing)}, got {scaling!r}.")
    if unknown := [name for name in given if name not in needed + allowed]:
        raise ValueError(f"`rope_scaling` of the type {kind} cannot have {', '.join(unknown)}, got {scaling!r}.")
    numbers = {name: positive(f"rope_scaling.{name}", value) for name, value in given.items()}
    if kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise ValueError(f"`rope_scaling.high_freq_factor` must be above `low_freq_factor`, got {scaling!r}.")
    return frozen({"rope_type": kind, **numbers} | ({} if truncate else {"truncate": False}))


def frequencies(theta: float, rotary_dim: int, scaling: Mapping[str, Any] | None) -> tuple[np.ndarray, float]:
    r"""The angle per position of every pair of rotated features, and a factor of rotated queries and of keys.

    Without scaling, pair $i$ turns by $f_i = \theta^{-2 i / d}$ (arXiv 2104.09864). The types of scaling, with the
    names and defaults of HF transformers:

    - `linear`: $f_i / s$, with the `factor` $s$ (arXiv 2306.15595).
    - `llama3`: $f_i$ for pairs that turn more than `high_freq_factor` times within the
        `original_max_position_embeddings`, $f_i / s$ for those that turn less than `low_freq_factor` times, and a mean
        of both for others, whose weight is linear in the number of turns.
    - `yarn`: likewise, but the weight is linear in $i$, from `beta_fast` turns to `beta_slow`. Queries and keys have a
        factor, the `attention_factor` or else $0.1 \log s + 1$ (arXiv 2309.00071).

    **Arguments:**

    - `theta`: the base of the wavelengths.
    - `rotary_dim`: $d$, even.
    - `scaling`: the type of scaling as `rope_type`, and its numbers; `None` for none.
    """
    # rounded where HF rounds: the last bits are 0.01 radians at position 100,000, and models were trained with these
    exponent = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    power = np.power(np.float64(np.float32(theta)), exponent.astype(np.float64))
    own, size = np.reciprocal(power.astype(np.float32)).astype(np.float64), 1.0
    weight = np.ones_like(own)  # of a pair's own frequency, against that over the factor
    if scaling is None:
        return own.astype(np.float32), size
    if scaling["rope_type"] == "linear":
        weight = np.zeros_like(own)
    elif scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * own / (2 * math.pi)
        weight = np.clip((turns - low) / (high - low), 0, 1)
    else:
        weight, size = _yarn(theta, rotary_dim, scaling), _yarn_size(scaling)
    return (own * (weight + (1 - weight) / scaling["factor"])).astype(np.float32), size


def _yarn(theta: float, dim: int, scaling: Mapping[str, Any]) -> np.ndarray:
    """The weights of the pairs' own frequencies."""
    length = scaling["original_max_position_embeddings"]
    pair = lambda turns: dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))  # with so many turns
    first, last = pair(scaling.get("beta_fast", 32.0)), pair(scaling.get("beta_slow", 1.0))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    last = first + 0.001 if first == last else last
    return 1 - np.clip((np.arange(dim // 2) - first) / (last - first), 0, 1)


def _yarn_size(scaling: Mapping[str, Any]) -> float:
    """The factor of queries and keys."""
    grown = lambda by: 0.1 * by * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0
    if "attention_factor" in scaling:
        return scaling["attention_factor"]
    if "mscale" in scaling and "mscale_all_dim" in scaling:
        return grown(scaling["mscale"]) / grown(scaling["mscale_all_dim"])
    return grown(1.0)


def rotate(
    x: Float[Array, "time some dim"],
    position: Int[Array, " time"],
    theta: float,
    rotary_dim: int,
    scaling: Mapping[str, Any] | None,
) -> Float[Array, "time some dim"]:
    """Rotate pairs of features by angles that grow with the position (arXiv 2104.09864, equation 34).

    As in HF transformers, feature `i` of the first half of the `rotary_dim` features and feature `i` of their second
    half are a pair. Features past `rotary_dim` stay.

    **Arguments:**

    - `x`: queries or keys.
    - `position`: the position of every token.
    - `theta`, `rotary_dim`, `scaling`: as for `frequencies`.
    """
    half, (frequency, size) = rotary_dim // 2, frequencies(theta, rotary_dim, scaling)
    angle = (position.astype(jnp.float32)[:, None] * frequency[None])[:, None, :]
    cos, sin = ((size * turn(angle)).astype(x.dtype) for turn in (jnp.cos, jnp.sin))
    a, b, rest = x[..., :half], x[..., half:rotary_dim], x[..., rotary_dim:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, rest], axis=-1)
