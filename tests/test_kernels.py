"""The chunked kernels and the step against the token-by-token reference in float64."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import all_finite, jit, many_tokens, random_coefficients, relative_error, trees_close, trees_equal_bitwise

import ssmkit
from ssmkit import kernels
from ssmkit.kernels import _pairwise_decays as _segment, _scalar


# Float32 resolves 6e-8. The worst seen is 5e-7, where 67 decays near 1 follow one another; mostly it is 1e-7.
BOUND = 2e-6

HEADS, KEY, VALUE = 4, 5, 3
SCHEDULES = {"serial": kernels.serial, "parallel": kernels.parallel}
# (chunk, groups, time): time is never a multiple of the chunk, but where the chunk is 1.
SHAPES = [(1, 2, 67), (16, 1, 67), (64, HEADS, 67), (256, 2, 301)]
RESULTS = ("outputs", "final", "d log_decay", "d write", "d value", "d read", "d bonus", "d state")


def with_gradients(kernel, jit=jit):
    """A jitted function to outputs, final state, and gradients in everything, from cotangents of both."""

    @jit
    def run(coefficients, state, cotangents):
        results, pull = jax.vjp(kernel, coefficients, state)
        d_coefficients, d_state = pull(cotangents)
        fields = ("log_decay", "write", "value", "read", "bonus")
        return (*results, *(getattr(d_coefficients, field) for field in fields), d_state)

    return run


@functools.cache
def scan(schedule: str, chunk: int):
    """`chunk_scan`, compiled once per shape."""
    return jit(functools.partial(kernels.chunk_scan, chunk_size=chunk, schedule=SCHEDULES[schedule]))


@functools.cache
def scan_with_gradients(schedule: str, chunk: int, jit=jit):
    """Likewise."""
    kernel = functools.partial(kernels.chunk_scan, chunk_size=chunk, schedule=SCHEDULES[schedule])
    return with_gradients(kernel, jit)


STEP = jit(kernels.step)
REFERENCE = jit(kernels.reference)
REFERENCE_WITH_GRADIENTS = with_gradients(kernels.reference)


def cotangents_of(seed, outputs, state):
    rng = np.random.default_rng(seed)
    draw = lambda array: rng.normal(size=array.shape) + 1j * rng.normal(size=array.shape)
    real = lambda array: array if jnp.iscomplexobj(state) else array.real
    return tuple(jnp.asarray(real(draw(array)), array.dtype) for array in (outputs, state))


def in_float64(tree):
    wide = lambda array: jnp.complex128 if jnp.iscomplexobj(array) else jnp.float64
    return jax.tree.map(lambda array: array.astype(wide(array)), tree)


def errors(run, *arguments) -> dict[str, float]:
    """The relative error of each result against the float64 reference."""
    results = run(*arguments), REFERENCE_WITH_GRADIENTS(*in_float64(arguments))
    named = zip(RESULTS, *results, strict=True)
    return {name: relative_error(*pair) for name, *pair in named if pair != [None, None]}


@pytest.mark.parametrize("cumulative", [-1e-3, -400.0, -20000.0])
@pytest.mark.parametrize("chunk, groups, time", SHAPES, ids=lambda size: str(size))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_chunk_scan_and_gradients_match_the_reference(schedule, chunk, groups, time, cumulative):
    coefficients, state = random_coefficients(
        0, time=time, heads=HEADS, groups=groups, key=KEY, value=VALUE, cumulative=cumulative, chunk=chunk
    )
    arguments = coefficients, state, cotangents_of(1, coefficients.value, state)
    found = errors(scan_with_gradients(schedule, chunk), *arguments)
    assert max(found.values()) <= BOUND, found
    if (chunk, schedule) == (64, "serial"):  # and as users compile it
        found = errors(scan_with_gradients(schedule, chunk, jax.jit), *arguments)
        assert max(found.values()) <= BOUND, found


def test_cumsum_differences_would_fail(monkeypatch):
    """The bound has teeth: the usual decays break it where they are small."""
    monkeypatch.setattr(_scalar, "pairwise_decays", decays_of_differences)
    coefficients, state = random_coefficients(
        0, time=67, heads=HEADS, groups=2, key=KEY, value=VALUE, cumulative=-20000.0, chunk=64
    )
    outputs, _ = scan.__wrapped__("serial", 64)(coefficients, state)
    expected, _ = REFERENCE(*in_float64((coefficients, state)))
    assert relative_error(outputs, expected) > 5 * BOUND


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("decay", [0.0, -math.inf, "mixed"])
def test_remembering_and_forgetting_everything(schedule, decay):
    """A log-decay of exactly 0, of -inf, and every third token -inf among ordinary ones, gradients included."""
    coefficients, state = random_coefficients(
        2, time=67, heads=HEADS, groups=HEADS, key=KEY, value=VALUE, cumulative=-5.0, chunk=64
    )
    log_decay = coefficients.log_decay.at[::3].set(-jnp.inf) if decay == "mixed" else jnp.full((67, HEADS, 1), decay)
    fields = coefficients.write, coefficients.value, coefficients.read
    coefficients = many_tokens(log_decay.astype(jnp.float32), *fields)
    found = errors(scan_with_gradients(schedule, 64), coefficients, state, cotangents_of(3, coefficients.value, state))
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("groups", [1, 2, HEADS])
def test_step_and_gradients_match_the_reference(groups):
    coefficients, state = random_coefficients(
        4, time=5, heads=HEADS, groups=groups, key=KEY, value=VALUE, cumulative=-2.0, chunk=5
    )
    run = with_gradients(kernels.step)
    for decay in (coefficients.log_decay[0], jnp.zeros((HEADS, 1)), jnp.full((HEADS, 1), -jnp.inf)):
        token = jax.tree.map(lambda array: array[0], coefficients)
        token = ssmkit.Coefficients(decay.astype(jnp.float32), token.write, token.value, token.read)
        cotangents = cotangents_of(5, token.value, state)
        got = run(token, state, cotangents)
        many = (jax.tree.map(lambda array: array[None], token), state, (cotangents[0][None], cotangents[1]))
        expected = REFERENCE_WITH_GRADIENTS(*in_float64(many))
        for name, a, b in zip(RESULTS, got, expected, strict=True):
            assert a is b is None or relative_error(a, b.reshape(a.shape)) <= BOUND, name


# Every form that coefficients can take, and the family that its shapes choose.
FORMS = {
    "scalar, rank and reads": dict(rank=(2,), reads=(3,)),
    "scalar, bonus": dict(bonus=True),
    "scalar, complex": dict(is_complex=True),
    "per key": dict(decays=KEY),
    "per key, rank": dict(decays=KEY, rank=(2,)),
    "per key, rank and reads and bonus": dict(decays=KEY, rank=(2,), reads=(3,), bonus=True),
    "per key, complex": dict(decays=KEY, is_complex=True),
    "elementwise": dict(decays=KEY, value=1),
    "elementwise, one decay": dict(value=1),
    "elementwise, rank and reads and bonus": dict(decays=KEY, value=1, rank=(2,), reads=(3,), bonus=True),
    "elementwise, complex": dict(decays=1, key=1, value=1, groups=HEADS, is_complex=True),
    "elementwise, key": dict(key=1),
}
FAMILY = {"scalar": kernels.SCALAR_DECAY, "per key": kernels.DECAY_PER_KEY, "elementwise": kernels.ELEMENTWISE}


def form_coefficients(form: str, *, time: int = 67, cumulative: float = -400.0, chunk: int = 64):
    """Random coefficients of this form."""
    sizes = dict(time=time, heads=HEADS, groups=2, key=KEY, value=VALUE, cumulative=cumulative, chunk=chunk)
    return random_coefficients(6, **sizes | FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_shapes_choose_the_family(form):
    coefficients, _ = form_coefficients(form)
    assert kernels.family_of(coefficients) is FAMILY[form.split(",")[0]]


@pytest.mark.parametrize("chunk, schedule", [(1, "serial"), (16, "serial"), (64, "parallel")])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_its_gradients_match_the_reference(form, chunk, schedule):
    """At three decays, the smallest and the largest of which no factorisation around one point survives."""
    for cumulative in (-1e-3, -400.0, -20000.0):
        coefficients, state = form_coefficients(form, cumulative=cumulative)
        outputs, _ = jax.eval_shape(kernels.reference, coefficients, state)
        arguments = coefficients, state, cotangents_of(7, outputs, state)
        found = errors(scan_with_gradients(schedule, chunk), *arguments)
        assert max(found.values()) <= BOUND, (cumulative, found)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("form", ["per key, rank and reads and bonus", "elementwise, rank and reads and bonus"])
def test_every_form_may_remember_and_forget_everything(form, schedule):
    """Every third token forgets everything, and others nothing: -inf and 0 are ordinary log-decays."""
    coefficients, state = form_coefficients(form)
    log_decay = coefficients.log_decay.at[::3].set(-jnp.inf).at[1::3].set(0.0)
    coefficients = eqx.tree_at(lambda c: c.log_decay, coefficients, log_decay)
    outputs, _ = jax.eval_shape(kernels.reference, coefficients, state)
    found = errors(scan_with_gradients(schedule, 16), coefficients, state, cotangents_of(3, outputs, state))
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("form", FORMS)
def test_one_step_of_every_form(form):
    coefficients, state = form_coefficients(form, time=1, chunk=1, cumulative=-1.0)
    outputs, final = STEP(jax.tree.map(lambda array: array[0], coefficients), state)
    expected, expected_final = REFERENCE(*in_float64((coefficients, state)))
    assert max(relative_error(outputs, expected[0]), relative_error(final, expected_final)) <= BOUND


def test_complex_coefficients_need_a_complex_state():
    coefficients, state = form_coefficients("elementwise, complex", time=3)
    token = jax.tree.map(lambda array: array[0], coefficients)
    for run in (lambda s: kernels.chunk_scan(coefficients, s), lambda s: kernels.step(token, s)):
        with pytest.raises(ValueError, match=r"`state` must be complex64.*got float32.*`state_dtype`"):
            run(state.real)


@pytest.fixture(scope="module")
def sequence():
    """Coefficients of 67 tokens, a state, and the float64 answer."""
    coefficients, state = random_coefficients(
        8, time=67, heads=HEADS, groups=2, key=KEY, value=VALUE, cumulative=-3.0, chunk=67
    )
    return coefficients, state, REFERENCE(*in_float64((coefficients, state)))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("chunk", [50, 1000])
def test_any_chunk_size(sequence, schedule, chunk):
    """Also those that no block of the segment decays divides, and those longer than the sequence."""
    coefficients, state, expected = sequence
    assert max(map(relative_error, scan(schedule, chunk)(coefficients, state), expected)) <= BOUND


def test_the_backend_chooses_when_nothing_is_said(sequence):
    coefficients, state, expected = sequence
    assert max(map(relative_error, jit(kernels.chunk_scan)(coefficients, state), expected)) <= BOUND


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_token_and_one_token(sequence, schedule):
    coefficients, state, expected = sequence
    cut = lambda time: jax.tree.map(lambda array: array[:time], coefficients)
    outputs, final = scan(schedule, 50)(cut(0), state)
    assert outputs.shape == (0, HEADS, VALUE)
    assert trees_equal_bitwise(final, state)
    outputs, final = scan(schedule, 50)(cut(1), state)
    token = jax.tree.map(lambda array: array[0], coefficients)
    assert trees_close((outputs[0], final), STEP(token, state), BOUND)
    assert relative_error(outputs[0], expected[0][0]) <= BOUND


def run_one(kernel, coefficients, state):
    """The first token through one of the two kernels, and through the reference."""
    token = jax.tree.map(lambda array: array[0], coefficients)
    one = jax.tree.map(lambda array: array[:1], coefficients)
    outputs, final = STEP(token, state) if kernel == "step" else scan(kernel, 16)(one, state)
    return (jnp.reshape(outputs, (1, HEADS, VALUE)), final), REFERENCE(*in_float64((one, state)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("kernel", ["serial", "step"])
def test_the_state_keeps_its_dtype(sequence, kernel, dtype):
    """And the sum is done in the widest precision at hand: the state is rounded once, at the end."""
    coefficients, state, _ = sequence
    (outputs, final), expected = run_one(kernel, coefficients, state.astype(dtype))
    assert final.dtype == dtype
    assert outputs.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert relative_error(outputs, expected[0]) <= BOUND
    assert relative_error(final, expected[1]) <= (2**-8 if dtype == jnp.bfloat16 else BOUND)


@pytest.mark.parametrize("kernel", ["serial", "step"])
def test_narrow_operands_are_widened_before_they_are_multiplied(sequence, kernel):
    coefficients, state, _ = sequence
    narrow = [array.astype(jnp.bfloat16) for array in (coefficients.write, coefficients.value, coefficients.read)]
    (outputs, final), expected = run_one(kernel, many_tokens(coefficients.log_decay, *narrow), state)
    assert (outputs.dtype, final.dtype) == (jnp.float32, jnp.float32)
    assert max(map(relative_error, (outputs, final), expected)) <= BOUND


@pytest.mark.parametrize("chunk", [0, -1])
def test_chunk_size_below_one(sequence, chunk):
    coefficients, state, _ = sequence
    with pytest.raises(ValueError, match=rf"`chunk_size` must be an integer, at least 1, got {chunk}\."):
        kernels.chunk_scan(coefficients, state, chunk_size=chunk)


# Segment decays.


SEGMENT_DECAYS = jit(kernels.pairwise_decays)


def decays_of_differences(x):
    """The usual decays, of differences that cancel."""
    total = jnp.cumsum(x, axis=-1)
    difference = total[..., :, None] - total[..., None, :]
    lower = jnp.tri(x.shape[-1], dtype=bool)
    return jnp.exp(jnp.where(jnp.broadcast_to(lower, difference.shape), difference, -jnp.inf))


def exact_sums(x: np.ndarray) -> np.ndarray:
    """Every sum on its own, in float64; minus infinity above the diagonal."""
    chunk = x.shape[-1]
    x = x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)
    sums = np.full((*x.shape, chunk), -np.inf, x.dtype)
    for j in range(chunk):
        sums[..., j, j] = 0.0
        sums[..., j + 1 :, j] = np.cumsum(x[..., j + 1 :], axis=-1)
    return sums


def worst_decay(decays, sums) -> float:
    """The worst relative error of any single decay that float32 can hold, as a multiple of its exponent, if above 1.

    To round the exponent is to change the decay by as much times the exponent.
    """
    held = sums.real > -80.0
    expected = np.exp(sums[held])
    error = np.abs(np.asarray(decays)[held] - expected) / np.abs(expected)
    return float(np.max(error / np.maximum(np.abs(sums[held]), 1.0)))


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("cumulative", [-1e-3, -400.0, -20000.0])
@pytest.mark.parametrize("chunk", [1, 16, 17, 64, 100, 256, 300])
def test_pairwise_decays_are_relatively_precise_entry_by_entry(chunk, cumulative, is_complex):
    """Every entry, not just a norm: at most 22 float32 additions of terms of one sign stand behind each exponent."""
    coefficients, _ = random_coefficients(
        9, time=chunk, heads=3, groups=1, key=1, value=1, cumulative=cumulative, chunk=chunk, is_complex=is_complex
    )
    x = coefficients.log_decay[..., 0].T
    sums = exact_sums(np.asarray(x))
    decays = SEGMENT_DECAYS(x)
    assert decays.dtype == x.dtype and decays.shape == (3, chunk, chunk)
    upper = np.triu(np.ones((chunk, chunk), bool), 1)
    assert not np.asarray(decays)[:, upper].any()
    assert not np.asarray(decays)[sums.real < -104.0].any()  # less than half of what float32 can hold
    assert np.array_equal(np.diagonal(decays, axis1=-2, axis2=-1), np.ones((3, chunk)))
    if is_complex:  # angles of both signs add up to a hundred radians, which float32 holds to 4e-6
        assert relative_error(decays, np.exp(sums)) <= 4e-6
        return
    assert worst_decay(decays, sums) <= 1e-6
    if chunk > 16 and cumulative < -1:
        assert worst_decay(jit(decays_of_differences)(x), sums) > 1e-5


@pytest.mark.parametrize("chunk", [16, 50, 300])
def test_pairwise_decays_of_infinities(chunk):
    """-inf is an ordinary value: it reaches the decays that contain it, and no other."""
    x = jnp.asarray(np.where(np.arange(chunk) % 7 == 3, -np.inf, -0.5), jnp.float32)
    np.testing.assert_allclose(SEGMENT_DECAYS(x), np.exp(exact_sums(np.asarray(x))), rtol=1e-6)
    suffix = [np.asarray(x)[j + 1 :].sum() for j in range(chunk)]
    assert np.array_equal(jit(_segment.suffix_sums)(x), np.asarray(suffix, np.float32))


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1000.0, math.inf])
@pytest.mark.parametrize("chunk", [16, 50, 300])
def test_gradients_of_pairwise_decays(chunk, scale):
    """Finite at any decay, and those of the exponentials of the exact sums: a decay is its own derivative."""
    rng = np.random.default_rng(0)
    x = -rng.exponential(size=chunk) * (scale if math.isfinite(scale) else 1.0)
    x = jnp.asarray(np.where((np.arange(chunk) % 7 == 3) & math.isinf(scale), -np.inf, x), jnp.float32)
    weights = rng.normal(size=(chunk, chunk))
    got = jit(jax.grad(lambda x: jnp.sum(kernels.pairwise_decays(x) * weights.astype(np.float32))))(x)
    each = weights * np.exp(exact_sums(np.asarray(x)))
    # Token s is part of the decay from j to i for j < s <= i.
    expected = [each[s:, :s].sum() for s in range(chunk)]
    assert all_finite(got)
    assert relative_error(got, np.asarray(expected)) <= BOUND


def test_all_finite_finds_what_is_not():
    assert all_finite((jnp.ones(2), jnp.arange(3)))
    assert not all_finite((jnp.ones(2), jnp.asarray([0.0, -jnp.inf])))


def one_token():
    fields = [jnp.zeros(shape, jnp.float32) for shape in ((4, 1), (2, 3), (4, 5), (2, 3))]
    return ssmkit.Coefficients(*fields)


def many():
    return jax.vmap(lambda _: one_token())(jnp.zeros(7))


STATE = np.zeros((4, 3, 5), np.float32)


@pytest.mark.parametrize(
    "run, message",
    [
        (
            lambda: kernels.chunk_scan(one_token(), STATE),
            r"with a leading axis \(time\), got `log_decay` of shape \(4, 1",
        ),
        (
            lambda: kernels.reference(one_token(), STATE),
            r"with a leading axis \(time\), got `log_decay` of shape \(4, 1",
        ),
        (
            lambda: kernels.step(many(), STATE),
            r"those of one token, got `log_decay` of shape \(7, 4, 1\). Many tokens are",
        ),
        (lambda: kernels.step((1, 2), STATE), "`coefficients` must be `ssmkit.Coefficients`, got tuple"),
        (lambda: kernels.chunk_scan(None, STATE), "`coefficients` must be `ssmkit.Coefficients`, got NoneType"),
        (
            lambda: kernels.step(one_token(), STATE.astype(np.float16)),
            "`state` must be .*, got float16. float16 is refused",
        ),
        (lambda: kernels.chunk_scan(many(), STATE.astype(np.float16)), "`state` must be .*, got float16"),
        (lambda: kernels.step(one_token(), STATE.astype(int)), "`state` must be a floating-point .*, got int64"),
        (lambda: kernels.step(one_token(), 0.0), "`state` must be a floating-point or complex array, got float"),
        (lambda: kernels.step(one_token(), STATE[:2]), r"\(heads, key, value\) = \(4, 3, 5\), .* got \(2, 3, 5\)"),
        (
            lambda: kernels.chunk_scan(many(), STATE[None]),
            r"= \(4, 3, 5\), as the coefficients say, got \(1, 4, 3, 5\)",
        ),
        (lambda: kernels.chunk_scan(many(), STATE, schedule="serial"), "`schedule` must be `kernels.serial` or"),
    ],
)
def test_what_a_kernel_refuses(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_a_state_in_numpy_will_do():
    for run, coefficients in ((kernels.step, one_token()), (kernels.chunk_scan, many()), (kernels.reference, many())):
        assert trees_equal_bitwise(run(coefficients, STATE), run(coefficients, jnp.asarray(STATE)))
