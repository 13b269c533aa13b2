"""What adds up over thousands of tokens beside the states: phases, and the logarithms of exponential gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jit, trees_equal_bitwise

import ssmkit


def by_steps(operator, inputs, state):
    state, outputs = jax.lax.scan(lambda state, token: operator.step(token, state)[::-1], state, inputs)
    return outputs, state


def by_pieces(operator, inputs, state):
    """`chunk_scan` of 100 tokens at a time."""
    pieces = jax.tree.map(lambda x: x.reshape(-1, 100, *x.shape[1:]), inputs)
    state, outputs = jax.lax.scan(lambda state, some: operator.chunk_scan(some, state)[::-1], state, pieces)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs), state


WAYS = {
    "step": by_steps,
    "chunk_scan": lambda operator, inputs, state: operator.chunk_scan(inputs, state),
    "pieces": by_pieces,
}


@pytest.mark.parametrize("way", WAYS)
def test_phases_of_many_steps(way):
    """100,000 tokens, where a float32 sum token by token is wrong by 7e-4. Two numbers are within half a unit in the
    last place of a number in [1/2, 1]; tokens added by halves were seen to be within 8e-6."""
    time, rng = 100_000, np.random.default_rng(0)
    turns = [np.full(time, d) for d in (0.05, -0.0123, 1e-4, 0.49)] + [rng.uniform(0, 0.1, time), rng.normal(size=time)]
    turns = np.stack(turns, axis=1).astype(np.float32)
    operator = ssmkit.RunningPhase((turns.shape[1],))
    outputs, state = jit(lambda x: WAYS[way](operator, x, operator.init_state()))(turns)
    expected = np.cumsum(turns.astype(np.float64), axis=0)
    for got, exact in ((outputs, expected), (state[0], expected[-1])):
        error = np.asarray(got, np.float64) - exact
        assert np.max(np.abs(error - np.round(error))) <= (2.0**-25 + 1e-10 if way == "step" else 1e-5)
    assert np.max(np.abs(outputs)) <= 0.5


@pytest.mark.parametrize("way", WAYS)
def test_slow_forget_gates_behind_a_maximum(way):
    """What is left of every token's write after 4000 tokens: the rounding of its own gates, and of sums of up to 40
    where tokens are added by halves. A maximum that is one float32 number is wrong by 5e-4, token by token."""
    time, rng = 4000, np.random.default_rng(0)
    forget = np.broadcast_to(np.asarray([-1e-6, -1e-5, -1e-4, -1e-3, -1e-2], np.float32), (time, 5))
    write = rng.normal(size=forget.shape, scale=1.5).astype(np.float32)
    operator = ssmkit.Stabiliser(5)
    gates, _ = jit(lambda *x: WAYS[way](operator, ssmkit.Gates(*x), operator.init_state()))(forget, write)
    log_decay, log_write, log_scale = (np.asarray(gate, np.float64) for gate in gates)
    since = lambda x: np.sum(x, axis=0) - np.cumsum(x, axis=0)
    got, exact = log_write + since(log_decay) + log_scale[-1], write + since(forget.astype(np.float64))
    assert np.max(np.abs(got - exact) / np.maximum(np.abs(exact), 1.0)) <= (1.5e-6 if way == "step" else 6e-6)


@pytest.mark.parametrize("way", ["step", "chunk_scan"])
def test_gates_that_forget_all_and_write_nothing(way):
    """Infinite logarithms reach neither a later token nor a gradient."""
    operator, inf = ssmkit.Stabiliser(1), np.inf
    forget, write = (jnp.asarray(x, jnp.float32) for x in ([[-0.5], [-inf], [-0.5]], [[1.0], [2.0], [-inf]]))
    run = lambda x: WAYS[way](operator, ssmkit.Gates(forget, x), operator.init_state())
    gates, state = jit(run)(write)
    assert trees_equal_bitwise(gates.log_decay, jnp.float32([[-1.5], [-inf], [0.0]]))
    assert trees_equal_bitwise(gates.log_write, jnp.float32([[0.0], [0.0], [-inf]]))
    assert trees_equal_bitwise(state, jnp.float32([[1.5], [0.0]]))
    assert np.isfinite(jit(jax.grad(lambda x: jnp.sum(run(x)[0].log_scale)))(write)).all()


@pytest.mark.parametrize("way", ["step", "chunk_scan"])
def test_sums_have_the_gradients_of_sums(way):
    operator, rng = ssmkit.RunningPhase((2,)), np.random.default_rng(0)
    turns, weights = (jnp.asarray(rng.integers(-8, 8, size=(9, 2)), jnp.float32) for _ in range(2))
    run = lambda x, state: jnp.sum(weights * WAYS[way](operator, x / 32, state)[0])
    d_turns, d_state = jit(jax.grad(run, argnums=(0, 1)))(turns, operator.init_state())
    later = jnp.flip(jnp.cumsum(jnp.flip(weights, 0), axis=0), 0)
    assert trees_equal_bitwise(d_turns, later / 32)
    assert trees_equal_bitwise(d_state, jnp.stack([later[0], later[0]]))
