"""Dropout, which acts only if the model gets a key for it."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._construction import check_one_key
from .._types import PRNGKeyArray, checks_itself, real, shown


Tree = TypeVar("Tree")


class Dropout(eqx.Module):
    r"""A layer that drops features at random and scales the others by $1 / (1 - p)$ (JMLR 15, 2014).

    Without a key it does nothing. A module whose features are dropped in training has a field of this class.
    `model.forward(..., key=key)` gives every `Dropout` in the model's blocks its own key. `prefill`, `step`, and
    `forward` without a key drop nothing.
    """

    rate: float = eqx.field(static=True)
    key: PRNGKeyArray | None

    @checks_itself
    def __init__(self, rate: float | int = 0.0, key: PRNGKeyArray | None = None):
        """**Arguments:**

        - `rate`: $p$, in [0, 1).
        - `key`: the key that selects the dropped features; `None` drops none.

        **Raises:** `ValueError` when `rate` is out of range, or `key` is not a key.
        """
        number = real(rate)
        if number is None or not 0 <= number < 1:
            raise ValueError(f"`rate` must be in [0, 1), got {shown(rate)}.")
        if key is not None:
            check_one_key(key)
        self.rate = number
        self.key = key

    def __call__(self, x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
        """Drop features of `x` if there is a key; otherwise return `x`."""
        return x if self.key is None or self.rate == 0 else eqx.nn.Dropout(self.rate)(x, key=self.key)


@checks_itself
def with_dropout(model: Tree, rate: float) -> Tree:
    """The same model with every `ssmkit.Dropout` in it at another rate.

    **Arguments:**

    - `model`: a model, a block or any other tree of modules.
    - `rate`: the share of features that are dropped, in [0, 1).

    **Returns:** the model; no array is copied.

    **Raises:** `ValueError` when `rate` is out of range, or above 0 for a model without a `ssmkit.Dropout`.
    """
    layer = Dropout(rate)
    if rate > 0 and not _count(model):
        raise ValueError(
            f"features cannot be dropped at a rate of {rate}: {type(model).__name__} has no `ssmkit.Dropout`. Give it "
            "one where features are to be dropped, or let the rate, `dropout` of a training run, be 0."
        )
    return _replaced(model, lambda _: layer)


def with_keys(tree: Tree, key: PRNGKeyArray | None) -> Tree:
    """The same tree with a key for every `Dropout` in it; without a key, the tree unchanged."""
    count = _count(tree)
    if key is None or not count:
        return tree
    keys = iter(jax.random.split(key, count))
    return _replaced(tree, lambda layer: Dropout(layer.rate, next(keys)))


def with_split_keys(tree: Tree, count: int) -> Tree:
    """The same tree with `count` keys, along a leading axis, in place of the key of every `Dropout` that has one."""
    return _replaced(tree, lambda layer: jax.tree.map(lambda key: jax.random.split(key, count), layer))


def _is_dropout(node: Any) -> bool:
    return isinstance(node, Dropout)


def _count(tree: Any) -> int:
    return sum(map(_is_dropout, jax.tree.leaves(tree, is_leaf=_is_dropout)))


def _replaced(tree: Tree, make: Callable[[Dropout], Dropout]) -> Tree:
    return jax.tree.map(lambda node: make(node) if _is_dropout(node) else node, tree, is_leaf=_is_dropout)
