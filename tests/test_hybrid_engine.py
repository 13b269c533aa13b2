"""A model with attention through the engine: its room follows what is asked for, and nothing else of it shows."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generating import compilations

import ssmkit


VOCAB, WHOLE = 29, 640
PROMPTS = [[1, 2, 3], [4], [*range(20)], [int(i) for i in np.random.default_rng(0).integers(0, VOCAB, 600)]]
NEW = 24


@functools.cache
def model():
    layers = [
        {"mixer": "gla", "num_heads": 2},
        {"mixer": "attention", "num_heads": 2, "sliding_window": 6},
        {"mixer": "attention", "num_heads": 2, "num_kv_heads": 1, "partial_rotary_factor": 0.5},
    ]
    config = ssmkit.LanguageModelConfig(vocab_size=VOCAB, hidden_size=16, layers=layers)
    built = ssmkit.build(config, key=jax.random.key(0))
    return eqx.tree_at(lambda m: m.head.weight, built, replace_fn=lambda weight: 4 * weight)


@functools.cache
def logits():
    return eqx.filter_jit(lambda tokens: model()(tokens))


@functools.cache
def uncached(prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy tokens, each from all before it; what follows is padding, which changes nothing before it."""
    tokens, time = np.zeros(WHOLE, np.int32), len(prompt)
    tokens[:time] = prompt
    for last in range(time - 1, time - 1 + count):
        tokens[last + 1] = int(jnp.argmax(logits()(jnp.asarray(tokens))[last]))
    return tokens[time : time + count].tolist()


def expected(count):
    return [uncached(tuple(prompt), NEW)[:count] for prompt in PROMPTS]


def room(generation):
    return generation.cache[2].attention.keys.shape[2]


def test_unequal_prompts_one_of_them_in_two_pieces():
    whole = ssmkit.generate(model(), PROMPTS, NEW)
    assert np.asarray(whole.tokens).tolist() == expected(NEW)
    limits = [3, NEW, 0, 7]
    rows = ssmkit.generate(model(), PROMPTS, limits)
    for row, tokens, limit in zip(np.asarray(rows.tokens).tolist(), expected(NEW), limits, strict=True):
        assert row[:limit] == tokens[:limit]


def test_going_on_makes_room():
    first = ssmkit.generate(model(), PROMPTS[:3], 4)
    second = ssmkit.resume(model(), first, 8)
    third = ssmkit.resume(model(), second, 12)
    assert np.concatenate([g.tokens for g in (first, second, third)], axis=1).tolist() == expected(NEW)[:3]
    assert room(first) < room(third) <= 128


def test_further_prompts_onto_a_cache(tmp_path):
    """Also one that lay in a file, and one whose rows were moved."""
    first = ssmkit.generate(model(), PROMPTS[:3], 5)
    whole = [prompt + tokens + [7, 8] for prompt, tokens in zip(PROMPTS, expected(5), strict=True)][:3]
    want = [uncached(tuple(prompt), 6) for prompt in whole]
    second = ssmkit.generate(model(), [[7, 8]] * 3, 6, cache=first.cache)
    assert np.asarray(second.tokens).tolist() == want
    ssmkit.save_cache(first.cache, tmp_path / "session")
    loaded = ssmkit.load_cache(tmp_path / "session", model())
    moved = ssmkit.rows.take(loaded, jnp.asarray([2, 0, 1]))
    again = ssmkit.generate(model(), [[7, 8]] * 3, 6, cache=moved)
    assert np.asarray(again.tokens).tolist() == [want[2], want[0], want[1]]


def test_rows_are_copied_and_put_in_place_of_others():
    """Each goes on from the tokens of its own row, whatever the row it replaces held."""
    first = ssmkit.generate(model(), PROMPTS[:3], 5)
    after = [prompt + tokens + [7] for prompt, tokens in zip(PROMPTS, expected(5), strict=True)]
    want = [uncached(tuple(after[row]), 6) for row in (2, 1)]
    row = ssmkit.rows.take(first.cache, 2)
    copies = ssmkit.generate(model(), [[7]] * 3, 6, cache=ssmkit.rows.fork(row, 3))
    assert np.asarray(copies.tokens).tolist() == [want[0]] * 3
    changed = ssmkit.generate(model(), [[7]] * 3, 6, cache=ssmkit.rows.put(first.cache, 0, row))
    assert np.asarray(changed.tokens).tolist() == [want[0], want[1], want[0]]


def test_one_executable_per_doubling_of_the_room():
    """From a room of 48, 112 more tokens need rooms of 64, 128 and 256."""
    generation = ssmkit.generate(model(), PROMPTS[:3], 4)
    assert room(generation) == 48
    rooms, events = [], []
    for _ in range(7):
        with compilations() as compiled:
            generation = ssmkit.resume(model(), generation, 16)
        events.append(compiled.count("jit(proceed)"))
        rooms.append(room(generation))
    assert rooms == [64, 64, 128, 128, 128, 128, 256]
    assert sum(events) <= 3 and all(new <= (a != b) for new, a, b in zip(events, [48, *rooms], rooms, strict=False))


def test_a_stream():
    stream = ssmkit.stream(model(), PROMPTS[2], NEW)
    assert list(stream) == expected(NEW)[2]
    (more,) = np.asarray(ssmkit.resume(model(), stream.generation, 4).tokens).tolist()
    assert more == uncached(tuple(PROMPTS[2]), NEW + 4)[NEW:]


def test_a_score_needs_no_more_than_its_text():
    tokens = np.asarray(PROMPTS[3])
    given = ssmkit.score(model(), tokens)
    padded = np.zeros(WHOLE, np.int32)
    padded[: len(tokens)] = tokens
    log_probs = jax.nn.log_softmax(logits()(jnp.asarray(padded)).astype(jnp.float64))
    nats = -float(np.sum(np.asarray(log_probs)[np.arange(len(tokens) - 1), tokens[1:]]))
    assert given.nats == pytest.approx(nats, rel=1e-6)


def test_a_cache_without_room_or_of_another_form():
    first = ssmkit.generate(model(), PROMPTS[:2], 2)
    window, full = first.cache[1:]
    with pytest.raises(ValueError, match="`cache` must have a leading batch axis of 2 on every array"):
        ssmkit.generate(model(), [[7]] * 2, 2, cache=(first.cache[0], full, window))
    state = full.attention
    lost = full._replace(attention=state._replace(length=state.length + 1000))
    with pytest.raises(ValueError, match="the cache has lost tokens"):
        ssmkit.generate(model(), [[7]] * 2, 2, cache=(*first.cache[:2], lost))
