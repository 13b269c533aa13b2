"""Decays that are multiplied thousands of times: nothing is lost from token to token but what a float32 state loses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, many_tokens, relative_error, trees_equal_bitwise
from kernel_runs import in_chunks

import ssmkit
from ssmkit import kernels
from ssmkit.kernels import _decay
from ssmkit.kernels._constant import constant_fields


TOKENS = 4096
# A state that is rounded once per chunk is rounded 32 to 128 times: the worst seen is 4.7e-7. Rounded decays are wrong
# by 2e-5 to 7e-5.
BY_CHUNK = 8e-7
DECAYS = (-1e-6, -1e-5, -1e-4, -1e-3)
ANGLES = (0.3, 3.1, 1e-3, -2.0)
FORMS = {  # keys, values, log-decays per head, whether they turn
    "K1": (2, 3, 1, False),
    "K2": (2, 3, 2, False),
    "K3": (2, 1, 2, False),
    "K1, complex": (2, 3, 1, True),
    "K2, complex": (2, 3, 2, True),
    "K3, complex": (2, 1, 2, True),
}


def slow(form):
    """Coefficients with the decays above, one per head, a state, and cotangents of outputs and state."""
    key, value, decays, is_complex = FORMS[form]
    rng, heads = np.random.default_rng(0), len(DECAYS)
    dtype = np.complex64 if is_complex else np.float32

    def draw(*shape):
        real = rng.normal(size=shape)
        return jnp.asarray(real + 1j * rng.normal(size=shape) if is_complex else real, dtype)

    a = np.asarray(DECAYS) + (1j * np.asarray(ANGLES) if is_complex else 0.0)
    log_decay = jnp.broadcast_to(jnp.asarray(a, dtype)[:, None], (TOKENS, heads, decays))
    c = many_tokens(log_decay, draw(TOKENS, heads, key), draw(TOKENS, heads, value), draw(TOKENS, heads, key))
    return (c, draw(heads, key, value)), (draw(TOKENS, heads, value), draw(heads, key, value))


def by_steps(c, state):
    state, outputs = jax.lax.scan(lambda state, token: kernels.step(token, state)[::-1], state, c)
    return outputs, state


WAYS = {
    "step": by_steps,
    "serial": in_chunks(32, kernels.serial),
    "parallel": in_chunks(128, kernels.parallel),
}


@functools.cache
def all_of(way):
    """Outputs, the last state, and gradients in the decays, the values and the first state."""

    def run(arguments, cotangents):
        results, pull = jax.vjp(way, *arguments)
        d_coefficients, d_state = pull(cotangents)
        return (*results, d_coefficients.log_decay, d_coefficients.value, d_state)

    return jit(run)


def narrowed(c, state):
    """All in float64, but the state, and in the pass backwards its gradient, is rounded to 32 bits at every token."""

    def token(state, token):
        outputs, new = kernels.step(token, state)
        return new.astype(jnp.complex64 if jnp.iscomplexobj(new) else jnp.float32).astype(new.dtype), outputs

    state, outputs = jax.lax.scan(token, state, c)
    return outputs, state


def in_float64(way, form):
    wide = lambda x: x.astype(jnp.complex128 if jnp.iscomplexobj(x) else jnp.float64)
    return all_of(way)(*jax.tree.map(wide, slow(form)))


@functools.cache
def expected(form):
    return in_float64(kernels.reference, form)


def errors(form, results):
    """The errors of outputs, state, and the gradients in the decays, the values and the first state."""
    return np.asarray([relative_error(*pair) for pair in zip(results, expected(form), strict=True)])


@functools.cache
def by_token(form):
    """Bounds where the state is rounded at every token: twice the least that this costs, as roundings differ, and what
    the arithmetic of one token adds. A complex product rounds three times."""
    times = 3 if "complex" in form else 2
    return times * errors(form, in_float64(narrowed, form)) + 5e-7


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_slow_decays_lose_nothing(form, way):
    """In outputs, states and gradients, complex decays included."""
    found = errors(form, all_of(WAYS[way])(*slow(form)))
    every_token = way == "step" or (way == "serial" and form.startswith("K3"))
    assert (found <= (by_token(form) if every_token else BY_CHUNK)).all(), found


def test_rounded_decays_would_fail():
    """The bounds have teeth: the usual loop in float32 breaks each."""
    found = errors("K3", all_of(kernels.reference)(*slow("K3")))
    assert (found > 4 * np.maximum(by_token("K3"), BY_CHUNK)).all(), found


def exact(log_decay):
    return np.exp(np.asarray(log_decay).astype(np.complex128 if jnp.iscomplexobj(log_decay) else np.float64))


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_a_decay_as_a_sum_of_two(is_complex):
    """A weak one is wrong by 2e-7 of what it differs from a direction, a strong one by the rounding of its exponent."""
    a = -np.geomspace(1e-7, 30.0, 4001)
    a = jnp.asarray(a + 1j * np.linspace(-40.0, 40.0, 4001) if is_complex else a, jnp.complex64 if is_complex else None)
    a = a.astype(jnp.complex64 if is_complex else jnp.float32)
    near, rest = jit(_decay.decay)(a)
    near = np.signbit(rest).astype(np.float64) if near is None else np.asarray(near).astype(np.complex128)
    error = np.abs(near + np.asarray(rest).astype(near.dtype) - exact(a))
    weak = np.asarray(a).real > -0.25
    largest = np.abs(np.asarray(a).real) + (0.004 if is_complex else 0.0)
    assert np.max(error[weak] / largest[weak]) <= 2e-7  # three roundings
    assert np.max(error[~weak] / np.abs(exact(a))[~weak]) <= 6e-6


@pytest.mark.parametrize("a", [-0.2, -0.3, -5.0, -15.0])
def test_what_a_strong_decay_keeps_of_a_large_state_is_no_difference(a):
    one = jnp.ones((1, 1), jnp.float32)
    token = ssmkit.Coefficients(jnp.full((1, 1), a, jnp.float32), one, 1e-9 * one, one)
    _, state = jit(kernels.step)(token, jnp.full((1, 1, 1), 1e6, jnp.float32))
    assert abs(float(state[0, 0, 0]) / (1e6 * exact(token.log_decay)[0, 0] + 1e-9) - 1) <= 1e-6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.complex64, jnp.complex128])
def test_remembering_and_forgetting_are_exact(dtype):
    rng = np.random.default_rng(0)
    state = jnp.asarray(rng.normal(size=(2, 3)), dtype)
    apply = jit(lambda a, state: _decay.decay(a)(state, jnp.zeros_like(state)))
    assert trees_equal_bitwise(apply(jnp.zeros((2, 1), dtype), state), state)
    assert not np.asarray(apply(jnp.full((2, 1), -jnp.inf, dtype), state)).any()
    slope = jit(jax.grad(lambda a: jnp.real(_decay.decay(a)(jnp.ones_like(a), jnp.zeros_like(a)))[0]))
    assert abs(slope(jnp.zeros((1,), dtype))[0] - 1) < 1e-6 and slope(jnp.full((1,), -jnp.inf, dtype))[0] == 0


def test_constant_coefficients_are_known():
    """By what the inputs reach: a time-invariant system repeats nothing for every token."""
    one = jnp.ones((2, 1), jnp.float32)
    a = -one

    def invariant(x):
        return ssmkit.Coefficients(log_decay=a, write=one, value=x, read=one)

    def selective(x):
        return ssmkit.Coefficients(log_decay=a * x, write=one, value=x, read=x, bonus=one)

    tokens = jax.ShapeDtypeStruct((5, 2, 1), jnp.float32)
    assert constant_fields(jax.vmap(invariant), tokens)[1] == ["log_decay", "write", "read"]
    assert constant_fields(jax.vmap(selective), tokens)[1] == ["write", "bonus"]
