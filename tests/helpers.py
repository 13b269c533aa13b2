"""What the tests share: comparisons, random coefficients, and the registry of everything the laws hold for."""

import copy
import functools
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmkit
from ssmkit.models import Mamba2, Mamba2Config, Mamba2Mixer, Mamba2Recurrence, ToySSM
from ssmkit.models.mamba2 import Mamba2Inputs
from ssmkit.models.toy import ToyMixer, ToyRecurrence


# The laws are about what is computed, not how fast: compiling without LLVM's optimisations takes half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


# Comparisons.


def relative_error(got, expected) -> float:
    """`|got - expected| / |expected|` in the Euclidean norm over the whole array; infinite unless `got` is finite.

    What float32 cannot represent counts as zero.
    """
    got, expected = (_widened(np.asarray(array)) for array in (got, expected))
    if got.shape != expected.shape or not np.isfinite(got).all() or not np.isfinite(expected).all():
        return np.inf
    return float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) + 1e-30))


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


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
    return all(bool(np.isfinite(_widened(np.asarray(leaf))).all()) for leaf in jax.tree.leaves(tree))


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


# The registry.


class Case(NamedTuple):
    """One thing the laws hold for."""

    id: str
    make: Callable[[jax.Array], eqx.Module]  # from a random key
    sample: Callable[[np.random.Generator, int], Any]  # the inputs of `time` tokens
    bound: float = 4e-6  # on the relative error; 1.4e-6 is the worst in 300 random examples of each float32 case

    @property
    def is_language_model(self) -> bool:
        """Whether `prefill` returns outputs at the last token only."""
        return self in LANGUAGE_MODELS


WIDTH, HEADS, HEAD_DIM, STATE, VOCAB = 8, 4, 4, 5, 19
# Float32 rounding decides now and then which way an operand rounds to bfloat16, a step of 2^-8: 7e-3 is the worst seen.
BF16_BOUND = 2e-2


def mamba2_config(**changes) -> Mamba2Config:
    """Small and awkward: no two sizes alike, and chunks that do not divide the sequence."""
    geometry = dict(hidden_size=WIDTH, state_size=STATE, head_dim=HEAD_DIM, chunk_size=4)
    return Mamba2Config(**dict(vocab_size=VOCAB, num_hidden_layers=1) | geometry | changes)


def _normal(*shape: int, scale: float = 1.0) -> Callable[[np.random.Generator, int], jax.Array]:
    return lambda rng, time: jnp.asarray(rng.normal(0.0, scale, (time, *shape)), jnp.float32)


def _tokens(rng: np.random.Generator, time: int) -> jax.Array:
    return jnp.asarray(rng.integers(VOCAB, size=time))


def _mamba2_inputs(groups: int) -> Callable[[np.random.Generator, int], Mamba2Inputs]:
    def sample(rng, time):
        x, B, C, dt = (
            _normal(*shape, scale=scale)(rng, time)
            for shape, scale in [
                ((HEADS, HEAD_DIM), 1.0),
                ((groups, STATE), 1.0),
                ((groups, STATE), 1.0),
                ((HEADS,), 3.0),
            ]
        )
        return Mamba2Inputs(x=x, B=B, C=C, dt=dt)

    return sample


def _mamba2_recurrence(groups: int, **changes) -> Case:
    config = mamba2_config(n_groups=groups, **changes)
    name = "-".join(["mamba2-recurrence", f"groups{groups}", *changes])
    return Case(name, lambda key: Mamba2Recurrence(config, key=key), _mamba2_inputs(groups))


def _gates(rng: np.random.Generator, time: int) -> ssmkit.Gates:
    return ssmkit.Gates(forget=-jnp.abs(_normal(3)(rng, time)), input=_normal(3, scale=3.0)(rng, time))


def _conv(kernel_size: int, **options) -> Case:
    name = "-".join([f"conv-kernel{kernel_size}", *options])
    return Case(name, lambda key: ssmkit.CausalConv1d(3, kernel_size, key=key, **options), _normal(3))


def _mamba2_mixer(name: str, *, dtype=jnp.float32, bound=Case._field_defaults["bound"], **changes) -> Case:
    config = mamba2_config(**changes)
    return Case(name, lambda key: Mamba2Mixer(config, key=key, dtype=dtype), _normal(WIDTH), bound)


def _toy_mixer(key) -> ToyMixer:
    dim = WIDTH // 2
    return ToyMixer(
        in_proj=ssmkit.Linear(WIDTH, 2 * (3 * dim + 1), key=key),
        recurrence=ToyRecurrence(state_shape=(2, dim, dim), chunk_size=4),
        out_proj=ssmkit.Linear(WIDTH, WIDTH, key=jax.random.fold_in(key, 1)),
    )


def _mamba2(name: str, *, dtype=jnp.float32, bound=Case._field_defaults["bound"], **changes) -> Case:
    config = mamba2_config(**changes)
    return Case(name, lambda key: Mamba2(config, key=key, dtype=dtype), _tokens, bound)


def _language_model(key) -> ssmkit.LanguageModel:
    """Mixers of different kinds, the norm with a bias, an untied head."""
    mixers = [_toy_mixer(key), ssmkit.GatedMLP(WIDTH, 5, key=key), Mamba2Mixer(mamba2_config(), key=key)]
    return ssmkit.LanguageModel(VOCAB, WIDTH, mixers, norm=ssmkit.LayerNorm, key=key)


LIMITS = (0.01, 0.2)

OPERATORS = [
    _mamba2_recurrence(1),
    _mamba2_recurrence(2, time_step_limit=LIMITS),
    Case("toy-recurrence", lambda key: ToyRecurrence(state_shape=(2, 3, 3), chunk_size=4), _normal(2, 10)),
    Case("shift", lambda key: ssmkit.Shift((3, 2)), _normal(3, 2)),
    Case("stabiliser", lambda key: ssmkit.Stabiliser(3), _gates),
    Case("running-phase", lambda key: ssmkit.RunningPhase((3, 2)), _normal(3, 2)),
    _conv(1),
    _conv(4),
    _conv(4, use_bias=False, dtype=jnp.bfloat16),
]
MIXERS = [
    _mamba2_mixer("mamba2-mixer"),
    _mamba2_mixer("mamba2-mixer-groups2-biases", n_groups=2, use_bias=True),
    _mamba2_mixer("mamba2-mixer-no-conv-bias-kernel1", use_conv_bias=False, conv_kernel=1),
    _mamba2_mixer("mamba2-mixer-limits-D_has_hdim", time_step_limit=LIMITS, D_has_hdim=True),
    _mamba2_mixer("mamba2-mixer-bf16", dtype=jnp.bfloat16, bound=BF16_BOUND, n_groups=2, use_bias=True),
    Case("toy-mixer", _toy_mixer, _normal(WIDTH)),
    Case("gated-mlp", lambda key: ssmkit.GatedMLP(WIDTH, 5, use_bias=True, key=key), _normal(WIDTH)),
    Case("residual-block", lambda key: ssmkit.ResidualBlock(ssmkit.RMSNorm(WIDTH), _toy_mixer(key)), _normal(WIDTH)),
]
LANGUAGE_MODELS = [
    _mamba2("mamba2", num_hidden_layers=2),
    _mamba2(
        "mamba2-groups2-biases-limits-D_has_hdim-tied",
        n_groups=2,
        use_bias=True,
        time_step_limit=LIMITS,
        D_has_hdim=True,
        tie_word_embeddings=True,
    ),
    _mamba2(
        "mamba2-bf16-no-conv-bias-padded-vocab",
        dtype=jnp.bfloat16,
        bound=BF16_BOUND,
        use_conv_bias=False,
        residual_in_fp32=False,
        pad_vocab_size_multiple=8,
    ),
    Case("toy", lambda key: ToySSM(VOCAB, WIDTH, 2, 2, key=key), _tokens),
    Case("language-model", _language_model, _tokens),
]
EVERYTHING = [*OPERATORS, *MIXERS, *LANGUAGE_MODELS]


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
    return model.prefill(tokens, model.init_cache(), length=length)[0]


def methods(module):
    """`(init, many, step)` of any kind of module, which differ in their names only."""
    if isinstance(module, ssmkit.AbstractSequenceOperator):
        return module.init_state, module.chunk_scan, module.step
    return module.init_cache, module.prefill, module.step


def over(cases: list[Case], *ids: str) -> pytest.MarkDecorator:
    """Parametrize `case` over a list of cases, or over those named by `ids`."""
    chosen = [case for case in cases if not ids or case.id in ids]
    assert len(chosen) == (len(ids) or len(cases)), f"no such case among {ids}"
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in chosen])


def with_chunk_size(module, chunk_size: int):
    """The same module with another chunk size in every recurrence it holds."""

    def change(node):
        if isinstance(node, ssmkit.DiagonalChunkedRecurrence):
            node = copy.copy(node)
            object.__setattr__(node, "chunk_size", chunk_size)
        return node

    return jax.tree.map(change, module, is_leaf=lambda node: isinstance(node, ssmkit.DiagonalChunkedRecurrence))


# The classes of the package.


def is_abstract(cls: type) -> bool:
    """Whether something is left to implement: a method or an `eqx.AbstractVar`."""
    left = (*getattr(cls, "__abstractvars__", ()), *getattr(cls, "__abstractclassvars__", ()))
    return inspect.isabstract(cls) or bool(left)


@functools.cache
def package_modules() -> dict[str, Any]:
    """Every module of ssmkit by name, imported."""
    names = [info.name for info in pkgutil.walk_packages(ssmkit.__path__, "ssmkit.")]
    return {name: __import__(name, fromlist=["_"]) for name in names if not name.endswith("__main__")}


def module_classes() -> list[type[eqx.Module]]:
    """Every `eqx.Module` class defined in the package."""
    found = {}
    for name, module in package_modules().items():
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, eqx.Module) and cls.__module__ == name:
                found[f"{name}.{cls.__qualname__}"] = cls
    return list(found.values())
