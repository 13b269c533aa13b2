"""Law 7: `reserve` makes room and has no other effect."""

from typing import Any

import jax
import numpy as np

from ._report import Finding, close, identical
from ._subject import Subject, methods, to_numpy


_LAW = "reserve changes nothing but the room"


def room_law(subject: Subject, inputs: Any, cache: Any, bound: float) -> list[Finding]:
    """Law 7: a cache with more room holds the same values and gives the same outputs, and the least room suffices.

    **Arguments:**

    - `inputs`: the inputs of some tokens.
    - `cache`: the cache of one sequence.
    - `bound`: the bound on the relative error between results with different room.
    """
    reserve, length = subject.module.reserve, subject.time
    found = identical(_LAW, "reserve(cache, 0)", to_numpy(reserve(cache, 0)), cache)
    grown = to_numpy(reserve(cache, 3 * length))
    found += _holds("reserve(cache, tokens)", grown, cache)
    least = to_numpy(reserve(methods(subject.module)[0](), length))
    found += _holds("init_cache() with more room", subject.init, least)
    if not all(finding.holds for finding in found):
        return found
    for name, room, other in (("more room", grown, cache), ("the least room", least, subject.init)):
        if _forms(room) == _forms(other):
            continue  # the same cache: the laws have been seen to hold for it
        outputs, after = subject.many(inputs, room, length)
        expected, expected_after = subject.many(inputs, other, length)
        found += close(_LAW, f"with {name}, outputs", outputs, expected, bound)
        common = jax.tree.map(lambda a, b: a[_corner(a, b)], after, expected_after)
        expected_common = jax.tree.map(lambda a, b: b[_corner(a, b)], after, expected_after)
        found += close(_LAW, f"with {name}, cache", common, expected_common, bound)
    return found


def _holds(what: str, large: Any, small: Any) -> list[Finding]:
    """Whether every array holds the same values; it may only be longer, with zeros at its end."""
    if jax.tree.structure(large) != jax.tree.structure(small):
        return identical(_LAW, what, large, small)
    found = []
    for (path, b), a in zip(jax.tree.leaves_with_path(small), jax.tree.leaves(large), strict=True):
        name = what + jax.tree_util.keystr(path)
        if a.ndim != b.ndim or any(i < j for i, j in zip(a.shape, b.shape, strict=True)):
            found.append(Finding(_LAW, name, np.inf, 0.0, f" has shape {a.shape}, which does not hold {b.shape}"))
            continue
        widened = np.zeros(a.shape, b.dtype)
        widened[_corner(a, b)] = b
        found += identical(_LAW, name, a, widened)
    return found


def _corner(a: Any, b: Any) -> tuple[slice, ...]:
    return tuple(slice(min(i, j)) for i, j in zip(a.shape, b.shape, strict=True))


def _forms(tree: Any) -> list[Any]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
