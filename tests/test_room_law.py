"""Law 7 is noticed to be broken."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_attention import attention, inputs

import ssmkit
from ssmkit import AttentionState, testing


class Reserving(ssmkit.AbstractSequenceOperator[Any, Any, AttentionState]):
    """Attention with another way to make room."""

    attention: ssmkit.Attention
    way: Any = dataclasses.field(metadata={"static": True})

    def init_state(self):
        return self.attention.init_state()

    def reserve(self, state, tokens):
        return self.way(self.attention, state, tokens)

    def chunk_scan(self, inputs, state, extent=ssmkit.Extent()):
        return self.attention.chunk_scan(inputs, state, extent)

    def step(self, inputs, state, *, valid=None):
        return self.attention.step(inputs, state, valid=valid)


def right(attention, state, tokens):
    return attention.reserve(state, tokens)


def empties(attention, state, tokens):
    room = attention.reserve(state, tokens)
    return room if room is state else jax.tree.map(jnp.zeros_like, room)


def forgets_one(attention, state, tokens):
    room = attention.reserve(state, tokens)
    return room if room.keys.shape == state.keys.shape else room._replace(values=room.values.at[:, 0].set(0.0))


def counts(attention, state, tokens):
    return attention.reserve(state, tokens)._replace(length=jnp.asarray(state.length + int(tokens > 0), jnp.int32))


def shrinks(attention, state, tokens):
    room = attention.reserve(state, tokens)
    grown = room.keys.shape[1] > 2 * inputs_time
    return AttentionState(room.keys[:, :20], room.values[:, :20], room.length) if grown else room


def widens(attention, state, tokens):
    room = attention.reserve(state, tokens)
    if room.keys.shape[1] <= 2 * inputs_time:
        return room
    return room._replace(keys=room.keys.astype(jnp.float64))


def fills(attention, state, tokens):
    room = attention.reserve(state, tokens)
    return room._replace(keys=room.keys.at[:, -1].set(1.0)) if room.keys.shape[1] > 2 * inputs_time else room


inputs_time = 16
LAW = "reserve changes nothing but the room"


def check(way):
    return testing.check_operator(Reserving(attention(), way), inputs(np.random.default_rng(0), inputs_time))


def test_room_as_it_should_be():
    assert LAW in str(check(right))


@pytest.mark.parametrize("way", [empties, forgets_one, counts, shrinks, widens, fills])
def test_a_breach_is_noticed(way):
    with pytest.raises(testing.LawError) as error:
        check(way)
    assert LAW in {finding.law for finding in error.value.report.broken}


def test_too_little_room_is_noticed():
    """Where the room cannot be known to lack, its outputs are NaN."""

    def stingy(attention, state, tokens):
        room = attention.reserve(state, tokens)
        cut = max(state.keys.shape[1], inputs_time)  # as much as is asked for at once, whatever came before
        return AttentionState(room.keys[:, :cut], room.values[:, :cut], room.length)

    with pytest.raises(testing.LawError):
        check(stingy)
