"""Law 8: rows are sequences side by side, and no row affects another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..generation import rows
from ._report import Finding, close, identical
from ._subject import Subject, jit, methods, rolled, to_numpy


def row_law(subject: Subject, inputs: Any, caches: list[Any], bound: float) -> list[Finding]:
    """Law 8: `take(put(R, i, r), i) = r`, other rows stay equal bit for bit, and `fork(r, n)` behaves as `r`.

    **Arguments:**

    - `inputs`: the inputs of some tokens.
    - `caches`: at least two caches of one sequence each.
    - `bound`: the bound on the relative error between results side by side and alone.
    """
    law, count = "rows are independent", len(caches)
    side_by_side = jax.tree.map(lambda *leaves: np.stack(leaves), *caches)
    row, index = caches[0], count - 1
    written = rows.put(jax.tree.map(jnp.asarray, side_by_side), index, row)
    found = identical(law, "take(put(rows, i, row), i)", to_numpy(rows.take(written, index)), row)
    others = np.arange(count - 1)
    kept, before = (to_numpy(rows.take(tree, jnp.asarray(others))) for tree in (written, side_by_side))
    found += identical(law, "the other rows of put(rows, i, row)", kept, before)
    # Each row has its own tokens, and the last row has none, so that a leak from one row to another is visible.
    _, _, step = methods(subject.module)
    pieces = [jax.tree.map(lambda a: a[0], rolled(inputs, i)) for i in range(count)]
    tokens = jax.tree.map(lambda *leaves: np.stack(leaves), *pieces)
    valid = np.arange(count) < count - 1
    run = jit(rows.each(lambda token, cache, valid: step(token, cache, valid=valid)))
    outputs, after = to_numpy(run(tokens, rows.fork(row, count), valid))
    for i in others.tolist():
        expected, expected_after = subject.steps(rolled(inputs, i), row, np.arange(subject.time) < 1)
        at = f"row {i} of fork(row, {count}) run"
        found += close(law, f"{at}, outputs", _pick(outputs, i), _pick(expected, 0), bound)
        found += close(law, f"{at}, cache", _pick(after, i), expected_after, bound)
    return found + identical(law, "a row without a token, cache", _pick(after, index), row)


def _pick(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda array: array[i], tree)
