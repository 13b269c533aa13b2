"""The laws that operators, mixers and language models share, each as a function from one example to findings."""

from typing import Any

import jax
import numpy as np

from .._extent import Extent
from .._language_model import AbstractLanguageModel
from ..operators._recurrence import DiagonalChunkedRecurrence
from ._report import Finding, close, finite, identical
from ._subject import Subject, jit, methods, mixed, rolled, to_numpy, with_chunk_size


def many_equal_steps(subject: Subject, inputs: Any, cache: Any, length: int, bound: float) -> list[Finding]:
    """Law 1: many tokens equal iterated steps, in outputs and cache."""
    outputs, after = subject.many(inputs, cache, length)
    stepped, stepped_after = subject.steps(inputs, cache, np.arange(subject.time) < length)
    got, expected = subject.valid_outputs(outputs, length), subject.matching_steps(stepped, length)
    law, at = "many tokens equal iterated steps", f"with length={length},"
    found = close(law, f"{at} outputs", got, expected, bound)
    return found + close(law, f"{at} cache", after, stepped_after, bound)


def unmasked(subject: Subject, inputs: Any, cache: Any, bound: float) -> list[Finding]:
    """Law 1 without `length` and `valid`, because a class may have separate code for this case."""
    law, time = "many tokens equal iterated steps", subject.time
    _, many, step = methods(subject.module)

    def body(cache, token):
        outputs, cache = step(token, cache)
        return cache, outputs

    run = jit(lambda inputs, cache: (many(inputs, cache), jax.lax.scan(body, cache, inputs)))
    (outputs, after), (stepped_after, stepped) = to_numpy(run(inputs, cache))
    expected, expected_after = subject.steps(inputs, cache, np.ones(time, bool))
    found = close(law, "without valid, outputs", stepped, expected, bound)
    found += close(law, "without valid, cache", stepped_after, expected_after, bound)
    outputs, expected = subject.valid_outputs(outputs, time), subject.matching_steps(expected, time)
    found += close(law, "without a length, outputs", outputs, expected, bound)
    return found + close(law, "without a length, cache", after, expected_after, bound)


def splits(subject: Subject, inputs: Any, cache: Any, split: int, bound: float) -> list[Finding]:
    """Law 2: a sequence may be split anywhere."""
    law, rest = "a sequence may be split anywhere", subject.time - split
    whole, after = subject.many(inputs, cache, subject.time)
    first, between = subject.many(inputs, cache, split)
    second, after_both = subject.many(rolled(inputs, split), between, rest)
    parts = [subject.valid_outputs(first, split), subject.valid_outputs(second, rest)]
    if subject.last_only:
        got = parts[rest > 0]
    else:
        got = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    outputs = close(law, f"split at {split}, outputs", got, subject.valid_outputs(whole, subject.time), bound)
    return outputs + close(law, f"split at {split}, cache", after_both, after, bound)


def padding(subject: Subject, inputs: Any, cache: Any, length: int) -> list[Finding]:
    """Law 3: any tokens at or past `length` leave no trace, and cause no NaN or infinity."""
    law, at = "tokens past the length leave no trace", f"with length={length},"
    valid = np.arange(subject.time) < length
    outputs, after = subject.many(inputs, cache, length)
    other, other_after = subject.many(mixed(inputs, rolled(inputs, 1), valid), cache, length)
    other, same = subject.valid_outputs(other, length), subject.valid_outputs(outputs, length)
    found = identical(law, f"{at} cache", other_after, after) + identical(law, f"{at} outputs", other, same)
    return found + finite(law, f"{at} outputs", outputs) + finite(law, f"{at} cache", after)


def identity(subject: Subject, inputs: Any, cache: Any) -> list[Finding]:
    """Law 3: if no token is valid, the cache stays unchanged bit for bit."""
    law = "invalid tokens leave the cache as it was"
    outputs, after = subject.many(inputs, cache, 0)
    stepped, stepped_after = subject.steps(inputs, cache, np.zeros(subject.time, bool))
    found = identical(law, "with length=0, cache", after, cache)
    found += identical(law, "with valid=False, cache", stepped_after, cache)
    return found + finite(law, "with length=0, outputs", outputs) + finite(law, "with valid=False, outputs", stepped)


def invalid_steps(subject: Subject, inputs: Any, cache: Any, valid: np.ndarray) -> list[Finding]:
    """Law 3: steps with `valid=False` between valid steps leave no trace, for any tokens."""
    law = "invalid steps between valid ones leave no trace"
    outputs, after = subject.steps(mixed(inputs, rolled(inputs, 1), valid), cache, valid)
    order = np.argsort(~valid, kind="stable")  # valid ones first
    alone, alone_after = subject.steps(jax.tree.map(lambda array: array[order], inputs), cache, valid[order])
    count = int(valid.sum())
    got, expected = jax.tree.map(lambda a: a[valid], outputs), jax.tree.map(lambda a: a[:count], alone)
    found = identical(law, "cache", after, alone_after) + identical(law, "outputs", got, expected)
    return found + finite(law, "outputs", outputs)


def form(subject: Subject, inputs: Any) -> list[Finding]:
    """Law 4: structure, shapes and dtypes of the cache never change, and it has no weak types, which compile twice."""
    law = "the cache keeps its form"
    _, many, step = methods(subject.module)
    token = jax.tree.map(lambda array: array[0], inputs)
    runs = {
        "many tokens": lambda inputs, _, cache: many(inputs, cache),
        "many tokens with a length": lambda inputs, _, cache: many(inputs, cache, Extent(length=1)),
        "a step": lambda _, token, cache: step(token, cache),
        "a step with valid": lambda _, token, cache: step(token, cache, valid=True),
    }
    before = jax.eval_shape(subject.begin)
    found = []
    for path, leaf in jax.tree.leaves_with_path(before):
        where = " has a weak type: name its dtype" if leaf.weak_type else ""
        found.append(Finding(law, f"init{jax.tree_util.keystr(path)}", np.inf if where else 0.0, 0.0, where))
    for name, run in runs.items():
        after = jax.eval_shape(run, inputs, token, before)[1]
        if jax.tree.structure(after) != jax.tree.structure(before):
            where = f" has the structure {jax.tree.structure(after)} and not {jax.tree.structure(before)}"
            found.append(Finding(law, f"cache after {name}", np.inf, 0.0, where))
            continue
        for (path, b), a in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
            got, expected = ((leaf.dtype.name, leaf.shape, leaf.weak_type) for leaf in (a, b))
            where = "" if got == expected else f" is {got} and not {expected} (dtype, shape, weak type)"
            what = f"cache{jax.tree_util.keystr(path)} after {name}"
            found.append(Finding(law, what, np.inf if where else 0.0, 0.0, where))
    return found


def chunk_sizes(subject: Subject, inputs: Any, cache: Any, chunk_size: int, bound: float) -> list[Finding]:
    """Law 5: results do not depend on the chunk size."""
    is_recurrence = lambda node: isinstance(node, DiagonalChunkedRecurrence)
    if not any(is_recurrence(leaf) for leaf in jax.tree.leaves(subject.module, is_leaf=is_recurrence)):
        return []
    many = methods(with_chunk_size(subject.module, chunk_size))[1]
    outputs, after = to_numpy(jit(lambda *arguments: many(*arguments))(inputs, cache))
    expected, expected_after = subject.many(inputs, cache, subject.time)
    law = "results do not depend on the chunk size"
    found = close(law, f"with chunk_size={chunk_size}, outputs", outputs, expected, bound)
    return found + close(law, f"with chunk_size={chunk_size}, cache", after, expected_after, bound)


def starts(subject: Subject, inputs: Any, cache: Any, starts: list[int], length: int, bound: float) -> list[Finding]:
    """Law 6: a start forgets. Outputs after it are as from an empty cache, and outputs before it do not change."""
    law, at = "a start forgets", f"with starts at {starts} and length={length},"
    ends = [*starts, subject.time]
    outputs, after = subject.packed(inputs, cache, length, np.isin(np.arange(subject.time), starts))
    expected, parts = cache, []
    for i, begin in enumerate([0, *starts]):
        if begin < length or i == 0:
            tokens = min(ends[i], length) - begin
            part, expected = subject.many(rolled(inputs, begin), expected if i == 0 else subject.init, tokens)
            parts.append(subject.valid_outputs(part, tokens))
    joined = parts[-1] if subject.last_only else jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    found = close(law, f"{at} outputs", subject.valid_outputs(outputs, length), joined, bound)
    return found + close(law, f"{at} cache", after, expected, bound)


def causality(subject: Subject, inputs: Any, cache: Any, token: int) -> list[Finding]:
    """No output depends on later inputs. A language model's `prefill` has no such outputs; `forward` checks them."""
    if subject.last_only:
        return []
    changed = mixed(inputs, rolled(inputs, 1), np.arange(subject.time) < token)
    until = lambda outputs: jax.tree.map(lambda array: array[:token], outputs)
    (outputs, _), (other, _) = (subject.many(x, cache, subject.time) for x in (inputs, changed))
    what = f"before a change of token {token}, outputs"
    return identical("no output depends on later inputs", what, until(other), until(outputs))


def gradients(subject: Subject, inputs: Any, cache: Any, length: int, bound: float) -> list[Finding]:
    """Law 1 for gradients of outputs and cache, with respect to parameters, cache and inputs."""
    got, expected = (subject.gradients[name](inputs, cache, length) for name in ("many", "steps"))
    law = "gradients of many tokens equal those of iterated steps"
    return [finding for name in expected for finding in close(law, f"d {name}", got[name], expected[name], bound)]


def extremes(subject: Subject, inputs: Any, cache: Any, scale: float) -> list[Finding]:
    """Outputs, cache and gradients are finite at inputs that drive every gate to its limits, and at zero."""
    law, at = "everything stays finite at extreme inputs", f"at {scale:g} times the inputs,"
    scaled = jax.tree.map(lambda a: a * a.dtype.type(scale) if np.issubdtype(a.dtype, np.inexact) else a, inputs)
    outputs, after = subject.many(scaled, cache, subject.time)
    stepped, stepped_after = subject.steps(scaled, cache, np.ones(subject.time, bool))
    results = {"outputs": outputs, "cache": after, "stepped outputs": stepped, "stepped cache": stepped_after}
    gradients = subject.gradients["many"](scaled, cache, subject.time)
    results |= {f"d {name}": tree for name, tree in gradients.items()}
    return [finding for name, tree in results.items() for finding in finite(law, f"{at} {name}", tree)]


def forward(subject: Subject, tokens: Any, cache: Any, bound: float) -> list[Finding]:
    """A language model's `forward` gives the logits of every step, none of which depends on later tokens."""
    assert isinstance(subject.module, AbstractLanguageModel)
    law = "forward gives the logits of every step"
    run = jit(lambda tokens, cache: subject.module.forward(tokens, cache))
    outputs, after = to_numpy(run(tokens, cache))
    expected, expected_after = subject.steps(tokens, cache, np.ones(subject.time, bool))
    found = close(law, "logits", outputs, expected, bound) + close(law, "cache", after, expected_after, bound)
    half = subject.time // 2
    changed, _ = to_numpy(run(mixed(tokens, rolled(tokens, 1), np.arange(subject.time) < half), cache))
    return found + identical(law, f"before a change of token {half}, logits", changed[:half], outputs[:half])
