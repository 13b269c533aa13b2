"""Every form that coefficients can take, in the kernel family that its shapes choose, against the float64 loop."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from helpers import random_coefficients, relative_error
from kernel_runs import (
    BOUND,
    HEADS,
    KEY,
    REFERENCE,
    RESULTS,
    SCHEDULES,
    STEP,
    VALUE,
    cotangents_of,
    errors,
    in_chunks,
    in_float64,
    scan,
    scan_with_gradients,
    with_gradients,
)

from ssmkit import kernels


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


@pytest.mark.parametrize("chunk, schedule", [(16, "serial"), (16, "parallel")])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_starts_anew_where_it_is_told(form, chunk, schedule):
    """At the first token, inside a chunk, twice in a row, and at the first and the last token of a chunk."""
    coefficients, state = form_coefficients(form, cumulative=-5.0)
    starts = jnp.isin(jnp.arange(67), jnp.asarray([0, 5, 6, 16, 47]))
    outputs, _ = jax.eval_shape(kernels.reference, coefficients, state)
    arguments = coefficients, state, cotangents_of(9, outputs, state)
    kernel = functools.partial(in_chunks(chunk, SCHEDULES[schedule]), starts=starts)
    got = with_gradients(kernel)(*arguments)
    expected = with_gradients(functools.partial(kernels.reference, starts=starts))(*in_float64(arguments))
    named = zip(RESULTS, got, expected, strict=True)
    found = {name: relative_error(*pair) for name, *pair in named if pair != [None, None] and name != "d state"}
    assert max(found.values()) <= BOUND, found
    assert not got[-1].any()  # what was before the first token's start has no influence
    without = scan(schedule, chunk)(coefficients, state)[0]
    assert relative_error(without, expected[0]) > 0.01


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
