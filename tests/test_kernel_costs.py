"""What the chunked kernels cost: memory kept for the backward pass, work, and what is never repeated."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from helpers import equations, jit, many_tokens
from kernel_runs import in_chunks

import ssmkit
from ssmkit import kernels
from ssmkit.kernels import _schedule


SCHEDULES = {"serial": kernels.serial, "parallel": kernels.parallel}

# Sizes are chosen so that a product of dimensions says which they are: only `key` has the factor 7, only
# the members of a group (hence heads) the factor 3, only `value` the factor 5.

GROUPS, MEMBERS, WIDE_KEY, WIDE_VALUE, CHUNK = 2, 3, 7, 5, 32


def structs(time: int):
    """Coefficients and a state of these sizes, without data."""
    heads = GROUPS * MEMBERS
    shapes = (time, heads, 1), (time, GROUPS, WIDE_KEY), (time, heads, WIDE_VALUE), (time, GROUPS, WIDE_KEY)
    fields = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.eval_shape(many_tokens, *fields), jax.ShapeDtypeStruct((heads, WIDE_KEY, WIDE_VALUE), jnp.float32)


def loss(kernel):
    """A scalar of outputs and final state."""
    return lambda *arguments: sum(jnp.sum(jnp.square(result)) for result in kernel(*arguments))


def repeats_groups(shape) -> bool:
    """Whether an array of this shape holds a key vector per head: heads x key without value."""
    return math.prod(shape) % (MEMBERS * WIDE_KEY) == 0 and math.prod(shape) % WIDE_VALUE != 0


def shapes_in(function, *arguments) -> set[tuple[int, ...]]:
    jaxpr = jax.make_jaxpr(function)(*arguments)
    return {tuple(out.aval.shape) for equation, _ in equations(jaxpr.jaxpr) for out in equation.outvars}


def work(function, *arguments) -> int:
    """Multiply-adds and elements written."""
    total = 0
    for equation, often in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        size = sum(math.prod(out.aval.shape) for out in equation.outvars)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            size *= math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        total += size * often
    return total


SCANS = {name: in_chunks(CHUNK, schedule) for name, schedule in SCHEDULES.items()}


@pytest.mark.parametrize("kernel", SCANS.values(), ids=SCANS)
def test_groups_are_never_repeated_to_heads(kernel):
    gradient = jax.grad(loss(kernel), argnums=(0, 1))
    arguments = structs(4 * CHUNK)
    assert not [shape for shape in shapes_in(gradient, *arguments) if repeats_groups(shape)]
    compiled = jit(kernel).lower(*arguments).compile().as_text()
    shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", compiled)]
    assert len(shapes) > 20
    assert not [shape for shape in shapes if repeats_groups(shape)]


def materialised(function, *arguments) -> list[tuple[int, ...]]:
    """Shapes of what the compiled program writes to memory: fusions hold more, but not there."""
    text = jit(function).lower(*arguments).compile().as_text()
    entry = text[text.index("\nENTRY ") :]
    return [tuple(map(int, dims.split(","))) for dims in re.findall(r"%[\w.-]+ = \(?\w+\[([\d,]+)\]", entry)]


def test_a_step_repeats_no_groups_in_memory():
    """It does in the program as written, which XLA fuses into the update of the state."""
    coefficients, state = structs(1)
    token = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype), coefficients)
    shapes = materialised(kernels.step, token, state)
    assert len(shapes) >= 5
    assert not [shape for shape in shapes if repeats_groups(shape)]


def test_repeated_groups_would_be_noticed():
    """The reference does repeat them."""
    arguments = structs(4 * CHUNK)
    assert [shape for shape in shapes_in(kernels.reference, *arguments) if repeats_groups(shape)]
    repeated = materialised(lambda coefficients: jnp.repeat(coefficients.write, MEMBERS, axis=1), arguments[0])
    assert [shape for shape in repeated if repeats_groups(shape)]


def saved_sizes(kernel, time: int) -> list[int]:
    """Sizes of the arrays kept from the forward for the backward pass."""
    pull = jax.eval_shape(lambda *arguments: jax.vjp(kernel, *arguments)[1], *structs(time))
    return [leaf.size for leaf in jax.tree.leaves(pull)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_of_size_heads_by_chunk_by_chunk_is_saved(schedule, monkeypatch):
    chunks, time = 4, 4 * CHUNK
    # Per token what the coefficients hold and little else, per chunk a state: both schedules may keep that.
    states = chunks * GROUPS * MEMBERS * WIDE_KEY * WIDE_VALUE
    coefficients = time * (2 * GROUPS * WIDE_KEY + GROUPS * MEMBERS * (WIDE_VALUE + 1))
    square = chunks * GROUPS * MEMBERS * CHUNK * CHUNK
    assert max(states, coefficients) < square
    saved = saved_sizes(SCANS[schedule], time)
    assert max(saved) < square
    assert sum(saved) <= 2 * (states + coefficients)

    monkeypatch.setattr(_schedule.jax, "checkpoint", lambda function, **_: function)
    assert max(saved_sizes(SCANS[schedule], time)) >= square


@pytest.mark.parametrize("kernel", SCANS.values(), ids=SCANS)
def test_work_is_linear_in_the_number_of_chunks(kernel):
    for function in (kernel, jax.grad(loss(kernel), argnums=(0, 1))):
        short, long = (work(function, *structs(chunks * CHUNK)) for chunks in (8, 16))
        assert 1.9 < long / short < 2.1


def test_xla_counts_linear_work_too():
    """Its own count, for the schedule without a loop over whole chunks (it counts a loop's body once)."""
    flops = [jax.jit(SCANS["parallel"]).lower(*structs(n * CHUNK)).cost_analysis()["flops"] for n in (8, 16)]
    assert 1.9 < flops[1] / flops[0] < 2.1


def test_work_quadratic_in_time_would_be_noticed():
    """One chunk for the whole sequence."""
    whole = in_chunks(1024, kernels.serial)
    assert work(whole, *structs(1024)) > 3.0 * work(whole, *structs(512))


def wide(time: int):
    """As `structs`, with a decay per key channel: family K2."""
    coefficients, state = structs(time)
    heads = GROUPS * MEMBERS
    log_decay = jax.ShapeDtypeStruct((time, heads, WIDE_KEY), jnp.float32)
    return eqx.tree_at(lambda c: c.log_decay, coefficients, log_decay), state


def elementwise(time: int):
    """As `wide`, with values of one number: family K3."""
    coefficients, _ = wide(time)
    heads = GROUPS * MEMBERS
    value = jax.ShapeDtypeStruct((time, heads, 1), jnp.float32)
    state = jax.ShapeDtypeStruct((heads, WIDE_KEY, 1), jnp.float32)
    return eqx.tree_at(lambda c: c.value, coefficients, value), state


@pytest.mark.parametrize("arguments", [wide, elementwise])
@pytest.mark.parametrize("kernel", SCANS.values(), ids=SCANS)
def test_other_families_are_linear_in_the_number_of_chunks(kernel, arguments):
    for function in (kernel, jax.grad(loss(kernel), argnums=(0, 1))):
        short, long = (work(function, *arguments(chunks * CHUNK)) for chunks in (8, 16))
        assert 1.9 < long / short < 2.1


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_no_other_token_is_moved(platform):
    """An associative scan puts pairs of tokens apart and together, for which a TPU takes milliseconds."""

    def interleaves():
        found = equations(jax.make_jaxpr(lambda *arguments: kernels.chunk_scan(*arguments))(*elementwise(300)).jaxpr)
        pads = [equation for equation, _ in found if equation.primitive.name == "pad"]
        return any(inside > 0 for pad in pads for *_, inside in pad.params["padding_config"])

    with kernels.target(platform):
        assert not interleaves()
        with kernels.tuned(chunk_size=128, schedule=kernels.parallel):  # it would be noticed
            assert interleaves()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_coefficients_of_the_whole_sequence_never_exist(schedule, monkeypatch):
    """Nor does a state per token: what is saved is the inputs, and one state per chunk."""
    chunks, heads = 4, GROUPS * MEMBERS
    time = chunks * CHUNK

    def scan(rates, steps, state):
        def coefficients(step):
            ones = jnp.ones((1, WIDE_KEY), jnp.float32)
            return ssmkit.Coefficients(-rates * step[:, None], ones, step[:, None], ones)

        run = in_chunks(CHUNK, SCHEDULES[schedule], kernels.chunk_scan_of)
        return run(jax.vmap(coefficients), steps, state)

    shapes = (heads, WIDE_KEY), (time, heads), (heads, WIDE_KEY, 1)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    everything = time * heads * WIDE_KEY

    def saved():
        pull = jax.eval_shape(lambda *arguments: jax.vjp(scan, *arguments)[1], *arguments)
        return [leaf.size for leaf in jax.tree.leaves(pull)]

    assert sum(saved()) <= 2 * (time * heads + (chunks + 2) * heads * WIDE_KEY) < everything
    monkeypatch.setattr(_schedule.jax, "checkpoint", lambda function, **_: function)
    assert sum(saved()) >= everything


@pytest.mark.parametrize("invariant", [True, False])
def test_gradients_of_a_time_invariant_system_are_summed_token_by_token(invariant):
    """No sum over time of what has a number per token, head and key: XLA's CPU backend walks it ten times slower."""

    def loss(rates, x):
        def coefficients(x):
            ones = jnp.ones((1, WIDE_KEY), jnp.float32)
            return ssmkit.Coefficients(rates if invariant else rates * x[:, None], ones, x[:, None], ones)

        state = jnp.zeros((*rates.shape, 1), jnp.float32)
        run = in_chunks(CHUNK, kernels.serial, kernels.chunk_scan_of)
        outputs, _ = run(jax.vmap(coefficients), x, state)
        return jnp.sum(jnp.square(outputs))

    heads = GROUPS * MEMBERS
    shapes = (heads, WIDE_KEY), (2 * CHUNK, heads)
    jaxpr = jax.make_jaxpr(jax.grad(loss))(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    sums = [equation for equation, _ in equations(jaxpr.jaxpr) if equation.primitive.name == "reduce_sum"]
    wide = [equation for equation in sums if equation.invars[0].aval.size >= CHUNK * heads * WIDE_KEY]
    assert sums and bool(wide) != invariant
