"""What the tests share: comparisons, random coefficients, and modules with random parameters."""

import dataclasses
import functools
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmkit
from ssmkit.models import Mamba2Config
from ssmkit.testing._report import relative_error as relative_error, widened
from ssmkit.testing._subject import jit as jit, methods as methods, with_chunk_size as with_chunk_size


# Comparisons.


class Difference(str):
    """A falsy value that says what differs: `assert trees_close(a, b, 1e-6)` prints it."""

    def __bool__(self) -> bool:
        return False

    __repr__ = str.__str__


def _compare(got, expected, differ: Callable[[Any, Any], str | None]) -> bool | Difference:
    structures = jax.tree.structure(got), jax.tree.structure(expected)
    if structures[0] != structures[1]:
        return Difference(f"structures differ: {structures[0]} and {structures[1]}")
    lines = []
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path) or "the array"
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            lines.append(f"{name}: {a.dtype}{a.shape} and {b.dtype}{b.shape}")
        elif message := differ(a, b):
            lines.append(f"{name}: {message}")
    return Difference("\n".join(lines)) if lines else True


def trees_equal_bitwise(got, expected) -> bool | Difference:
    """Equal structure, shapes, dtypes and bytes: -0.0 differs from 0.0."""
    return _compare(
        got, expected, lambda a, b: None if np.asarray(a).tobytes() == np.asarray(b).tobytes() else "bits differ"
    )


def trees_close(got, expected, bound: float) -> bool | Difference:
    """Equal structure, shapes and dtypes, every leaf finite and within `bound` of relative error."""

    def differ(a, b):
        error = relative_error(a, b)
        return None if error <= bound else f"relative error {error:.1e}, more than {bound:.1e}"

    return _compare(got, expected, differ)


def all_finite(tree) -> bool:
    """Neither NaN nor infinity anywhere."""
    return all(bool(np.isfinite(widened(leaf)).all()) for leaf in jax.tree.leaves(tree))


# Random coefficients.


def random_coefficients(
    seed: int,
    *,
    time: int,
    heads: int,
    groups: int,
    key: int,
    value: int,
    cumulative: float,
    chunk: int,
    decays: int = 1,
    rank: tuple[int, ...] = (),
    reads: tuple[int, ...] = (),
    bonus: bool = False,
    is_complex: bool = False,
) -> tuple[ssmkit.Coefficients, jax.Array]:
    """Float32 coefficients of `time` tokens whose log-decay sums to `cumulative` over every whole chunk, and a state.

    Heavy-tailed: within one chunk some tokens forget everything and others hardly anything. `decays` is the width of
    the log-decay; complex numbers turn by up to a few radians per token.
    """
    rng = np.random.default_rng(seed)
    weight = np.exp(3.0 * rng.normal(size=(-(-time // chunk), chunk, heads, decays)))
    log_decay = (cumulative * weight / weight.sum(axis=1, keepdims=True)).reshape(-1, heads, decays)[:time]
    if is_complex:
        log_decay = log_decay + 3j * rng.normal(size=log_decay.shape)

    def normal(*shape):
        draw = rng.normal(size=shape)
        draw = draw + 1j * rng.normal(size=shape) if is_complex else draw
        return jnp.asarray(draw, jnp.complex64 if is_complex else jnp.float32)

    fields = normal(time, groups, *rank, key), normal(time, heads, *rank, value), normal(time, groups, *reads, key)
    log_decay, state = jnp.asarray(log_decay, fields[0].dtype), normal(heads, key, value)
    return many_tokens(log_decay, *fields, normal(time, heads, key) if bonus else None), state


def many_tokens(*fields) -> ssmkit.Coefficients:
    """Coefficients with a leading `time` axis."""
    return jax.vmap(ssmkit.Coefficients)(*fields)


# What the laws hold for: `registry.py` has them all.


class Case(NamedTuple):
    """One thing the laws hold for."""

    id: str
    make: Callable[[jax.Array], eqx.Module]  # from a random key
    sample: Callable[[np.random.Generator, int], Any]  # the inputs of `time` tokens
    bound: float = 4e-6  # on the relative error; 1.4e-6 is the worst in 300 random examples of each float32 case


WIDTH, HEADS, HEAD_DIM, STATE, VOCAB = 8, 4, 4, 5, 19
# Float32 rounding decides now and then which way an operand rounds to bfloat16, a step of 2^-8: 7e-3 is the worst seen.
BF16_BOUND = 2e-2


def mamba2_config(**changes) -> Mamba2Config:
    """Small and awkward: no two sizes alike, and chunks that do not divide the sequence."""
    geometry = dict(hidden_size=WIDTH, state_size=STATE, head_dim=HEAD_DIM, chunk_size=4)
    return Mamba2Config(**dict(vocab_size=VOCAB, num_hidden_layers=1) | geometry | changes)


def normal(*shape: int, scale: float = 1.0) -> Callable[[np.random.Generator, int], jax.Array]:
    return lambda rng, time: jnp.asarray(rng.normal(0.0, scale, (time, *shape)), jnp.float32)


def random_tokens(rng: np.random.Generator, time: int) -> jax.Array:
    return jnp.asarray(rng.integers(VOCAB, size=time))


def build(case: Case) -> Any:
    """The module with random parameters: unlike after initialisation, no bias is 0 and no scale 1."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(fill, eqx.filter_eval_shape(case.make, jax.random.key(0)))


@eqx.filter_jit
def forward(model, tokens):
    """Logits of every token of one sequence."""
    return model(tokens)


@eqx.filter_jit
def prefill(model, tokens, length):
    """Logits after `length` tokens; one executable serves every length."""
    return model.prefill(tokens, model.reserve(model.init_cache(), tokens.shape[0]), length=length)[0]


def over(cases: list[Case], *ids: str, first: Sequence[pytest.MarkDecorator] = ()) -> pytest.MarkDecorator:
    """Parametrize `case` over a list of cases, or over those named by `ids`.

    After the first case of a class, such as the first mixer of Mamba-2, the others are variants. `first` are the marks
    of first ones.
    """
    chosen = [case for case in cases if not ids or case.id in ids]
    assert len(chosen) == (len(ids) or len(cases)), f"no such case among {ids}"
    seen, parameters = set(), []
    for case in chosen:
        kind = (case.id.partition("-")[0], "-recurrence" in case.id, "-mixer" in case.id)
        parameters.append(pytest.param(case, id=case.id, marks=[pytest.mark.once] if kind in seen else first))
        seen.add(kind)
    return pytest.mark.parametrize("case", parameters)


# The classes of the package.


def is_abstract(cls: type) -> bool:
    """Whether something is left to implement: a method or an `eqx.AbstractVar`."""
    left = (*getattr(cls, "__abstractvars__", ()), *getattr(cls, "__abstractclassvars__", ()))
    return inspect.isabstract(cls) or bool(left)


@functools.cache
def package_modules() -> dict[str, Any]:
    """Every module of ssmkit by name, imported; not the benchmarks, which need other software."""
    names = [info.name for info in pkgutil.walk_packages(ssmkit.__path__, "ssmkit.")]
    wanted = [name for name in names if not name.endswith("__main__") and not name.startswith("ssmkit.benchmarks.")]
    return {name: __import__(name, fromlist=["_"]) for name in wanted}


def module_classes() -> list[type]:
    """Every class with fields that the package defines: every `eqx.Module` and every other dataclass."""
    found = {}
    for name, module in package_modules().items():
        for cls in vars(module).values():
            if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == name:
                found[f"{name}.{cls.__qualname__}"] = cls
    return list(found.values())


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside, the outer first, with how often it runs."""
    for equation in jaxpr.eqns:
        yield equation, 1
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        is_jaxpr = lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        for inner in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from ((nested, times * often) for nested, often in equations(inner))
