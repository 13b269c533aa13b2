"""Programs for CPU, GPU and TPU, lowered on whatever machine this is: StableHLO, and nothing else.

Nothing is compiled here, and no accelerator is asked for.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDTH, Case, build, equations, random_tokens, with_chunk_size
from hybrid_variants import VARIANTS, hybrid
from jax import export
from registry import LANGUAGE_MODELS, MIXERS

import ssmkit
from ssmkit.export import foreign_operations
from ssmkit.generation import _engine, _prompts, _requests
from ssmkit.models import GLAMixer, LRUMixer, RGLRUMixer


pytestmark = pytest.mark.once


PLATFORMS = ("cpu", "cuda", "tpu")
CAPACITY, TIME = 32, 10  # several chunks of the registry's models, the last one not full
SAMPLERS = {
    "greedy": ssmkit.Greedy(),
    "sampler": ssmkit.Sampler(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.2),
}


def lowered(function, *arguments, platform: str) -> str:
    """The program that computes a function of pytrees on a platform; random keys go in and out as plain integers."""
    arrays, constants = eqx.partition(arguments, eqx.is_array)
    is_key = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key), arrays)
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    def program(arrays):
        arrays = jax.tree.map(lambda x, key: jax.random.wrap_key_data(x) if key else x, arrays, is_key)
        return list(map(plain, jax.tree.leaves(function(*eqx.combine(arrays, constants)))))

    with ssmkit.kernels.target(platform):  # chunks and schedule as they would be there
        return export.export(jax.jit(program), platforms=[platform])(jax.tree.map(plain, arrays)).mlir_module()


def families(key: jax.Array) -> ssmkit.LanguageModel:
    """Mixers of the families of kernels that neither Mamba nor Mamba-2 is of."""
    mixers = [
        GLAMixer(WIDTH, num_heads=2, key=key),  # per key
        RGLRUMixer(WIDTH, num_heads=2, key=key),  # elementwise
        LRUMixer(WIDTH, state_size=5, key=key),  # complex
    ]
    return ssmkit.LanguageModel(19, WIDTH, [with_chunk_size(mixer, 4) for mixer in mixers], key=key)


@functools.cache
def model_of(name: str) -> Any:
    """A published hybrid, a model of the registry, or the one above."""
    if name in VARIANTS:
        return hybrid(name)
    cases = [*LANGUAGE_MODELS, Case("families", families, random_tokens)]
    return build(next(case for case in cases if case.id == name))


# "hybrid" has attention, with a window and without, which a recurrence of one number per state stands between. The last
# two have experts, and attention beside Mamba-2.
MODELS = (
    "mamba2-groups2-biases-limits-D_has_hdim-tied",
    "falcon-mamba",
    "families",
    "hybrid",
    "nemotron_h",
    "falcon_h1",
)


def begin(inputs):
    return _engine.begin(inputs, CAPACITY, None)


def proceed(inputs, rows):
    return _engine.proceed(inputs, CAPACITY, rows)


@eqx.filter_jit
def with_room(model, batch: int):
    """The caches of rows, with the room that the engine makes for a short prompt and the new tokens."""
    return model.reserve(ssmkit.rows.init(model, batch), 16 + CAPACITY)


def generations(model, sampler, batch: int, platform: str) -> Iterator[str]:
    """The engine's two executables; with log-probabilities where tokens are sampled."""
    log_probs = 2 if sampler.needs_key else None
    prompts, _ = _prompts.read_prompts([[1, 2, 3]] * batch, None, model.vocab_size, {})
    request = _requests.as_request([5] * batch, [[3]] * batch, [sampler] * batch, batch)
    keys = jax.random.split(jax.random.key(0), batch)
    rows = ssmkit.Rows(
        cache=with_room(model, batch),
        logits=jnp.zeros((batch, model.vocab_size), jnp.float32),
        keys=jax.random.key_data(keys),
        history=jnp.zeros((batch, model.vocab_size), bool) if sampler.needs_history else None,
        finished=jnp.zeros(batch, bool),
        last=jnp.zeros(batch, jnp.int32),
        consumed=jnp.zeros(batch, jnp.int32),
        key_kind=str(jax.random.key_impl(keys)),
    )
    yield lowered(begin, _engine.Inputs(model, request, prompts, keys, log_probs), platform=platform)
    if batch > 1:  # decodes as the other does
        yield lowered(proceed, _engine.Inputs(model, request, log_probs=log_probs), rows, platform=platform)


def loops(module: str, carried: str) -> list[str]:
    """The types of what each loop carries, of those loops that carry this one."""
    found = re.findall(r"stablehlo\.while\(.*\) : (.*?)(?: attributes .*)?(?: loc\(.*)?$", module, re.MULTILINE)
    return [types for types in found if carried in types]


def hlo_type(array) -> str:
    kind = {"float32": "f32", "complex64": "complex<f32>", "bfloat16": "bf16", "int32": "i32"}[array.dtype.name]
    return f"tensor<{'x'.join([*map(str, array.shape), kind])}>"


# Every model on every platform, with either sampler; the first, of two of the other combinations too.
GENERATIONS = [
    (name, batch, sampler, platform)
    for name in MODELS
    for batch, sampler in [(1, "greedy"), (2, "sampler")]
    for platform in PLATFORMS
] + [(MODELS[0], 2, "greedy", "cuda"), (MODELS[0], 1, "sampler", "tpu")]


@pytest.mark.parametrize("name, batch, sampler, platform", GENERATIONS)
def test_generation_is_one_loop_of_standard_operations(name, batch, sampler, platform):
    model = model_of(name)
    for module in generations(model, SAMPLERS[sampler], batch, platform):
        assert foreign_operations(module) == []
        (types,) = loops(module, f"tensor<{batch}x{CAPACITY}xi32>")
        cache = with_room(model, batch)
        for leaf in jax.tree.leaves(cache if batch > 1 else ssmkit.rows.take(cache, 0)):
            assert hlo_type(leaf) in types


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", MODELS)
def test_prefill_and_step_are_standard_operations(name, platform):
    model = model_of(name)
    tokens, length = jnp.zeros(TIME, jnp.int32), jnp.asarray(7, jnp.int32)
    cache = model.reserve(model.init_cache(), TIME)
    prefill = lambda model, tokens, cache, length: model.prefill(tokens, cache, length=length)
    step = lambda model, token, cache, valid: model.step(token, cache, valid=valid)
    assert foreign_operations(lowered(prefill, model, tokens, cache, length, platform=platform)) == []
    module = lowered(step, model, tokens[0], cache, jnp.asarray(True), platform=platform)
    assert foreign_operations(module) == []
    experts = [block for block in model.blocks if isinstance(block.mixer, ssmkit.MixtureOfExperts)]
    assert module.count("stablehlo.while") == len(experts)  # over those that the token is sent to


def mixer_cases():
    """One of every class, but those inside the models above."""
    kinds = {case.id.partition("-mixer")[0]: case for case in reversed(MIXERS)}
    seen = ("gla", "lru", "mamba", "mamba2", "rg-lru")
    return [pytest.param(case, id=kind) for kind, case in kinds.items() if kind not in seen]


@pytest.mark.parametrize("case", mixer_cases())
def test_every_other_mixer(case):
    mixer = build(case)
    x = case.sample(np.random.default_rng(0), TIME)
    both = lambda mixer, x, cache: (mixer.prefill(x, cache), mixer.step(x[0], cache))
    assert foreign_operations(lowered(both, mixer, x, mixer.reserve(mixer.init_cache(), TIME), platform="cuda")) == []


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_training_step_is_standard_operations(platform):
    def descend(model, batch):
        def loss(model):
            logits = jax.vmap(model)(batch[:, :-1])
            return jnp.mean(jax.vmap(ssmkit.cross_entropy)(logits, batch[:, 1:]))

        value, gradient = eqx.filter_value_and_grad(loss)(model)
        return value, eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, gradient))

    module = lowered(descend, model_of(MODELS[0]), jnp.zeros((2, TIME + 1), jnp.int32), platform=platform)
    assert foreign_operations(module) == []
    assert "stablehlo.dot_general" in module


@pytest.mark.parametrize("platform", PLATFORMS)
def test_accelerators_get_a_schedule_of_their_own(platform):
    """All chunks at once: no loop over chunks holds a matrix product, as the one for a CPU does."""
    model, tokens = model_of(MODELS[0]), jnp.zeros(TIME, jnp.int32)
    with ssmkit.kernels.target(platform):
        program = jax.make_jaxpr(lambda tokens: model.prefill(tokens, model.init_cache()))(tokens)
    scans = [equation for equation, _ in equations(program.jaxpr) if equation.primitive.name == "scan"]
    inside = {nested.primitive.name for scan in scans for nested, _ in equations(scan.params["jaxpr"].jaxpr)}
    assert scans and ("dot_general" in inside) == (platform == "cpu")


# The checks above can fail.


def callback(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def printing(x):
    jax.debug.print("{}", x)
    return x


@pytest.mark.parametrize(
    "function, platform, found",
    [
        (jnp.linalg.qr, "cpu", "lapack"),
        (jnp.linalg.qr, "cuda", "cusolver"),
        (jnp.linalg.qr, "tpu", "Qr"),
        (jnp.linalg.eigh, "tpu", "Eigh"),
        (callback, "cpu", "callback"),
        (printing, "cpu", "callback"),
    ],
)
def test_custom_calls_and_callbacks_are_found(function, platform, found):
    traced = jax.jit(function).trace(jnp.eye(4, dtype=jnp.float32))
    operations = foreign_operations(traced.lower(lowering_platforms=(platform,)).as_text())
    assert any(found in operation for operation in operations), operations


@pytest.mark.parametrize(
    "line, found",
    [
        ("  %0 = stablehlo.add %1, %2 : tensor<f32>", []),
        ("  %0:2 = stablehlo.custom_call @f(%1) {x = 1} : () -> ()", ["stablehlo.custom_call @f"]),
        ('  %0 = "stablehlo.custom_call"(%1) <{call_target_name = "g"}> : () -> ()', ["stablehlo.custom_call @g"]),
        ("  stablehlo.custom_call @shape_assertion(%1, %0) {api_version = 2 : i32} : () -> ()", []),
        ('  %0 = "stablehlo.infeed"(%1) : () -> ()', ["stablehlo.infeed"]),
        ("  %0 = triton.dot %1, %2 : tensor<f32>", ["triton.dot"]),
        ('  "tpu.kernel"(%1) : () -> ()', ["tpu.kernel"]),
    ],
)
def test_foreign_operations_of_a_line(line, found):
    module = (
        f"module @m {{\n  func.func public @main(%arg0: tensor<f32>) -> tensor<f32> {{\n{line}\n    return %0\n  }}\n}}"
    )
    assert foreign_operations(module) == found


def test_a_second_loop_would_be_counted():
    def twice(tokens):
        body = lambda carry: (carry[0] + 1, carry[1].at[0, carry[0]].set(1))
        carry = jax.lax.while_loop(lambda carry: carry[0] < 3, body, (jnp.asarray(0, jnp.int32), tokens))
        return jax.lax.while_loop(lambda carry: carry[0] < 5, body, carry)

    module = lowered(twice, jnp.zeros((1, CAPACITY), jnp.int32), platform="tpu")
    assert len(loops(module, f"tensor<1x{CAPACITY}xi32>")) == 2
