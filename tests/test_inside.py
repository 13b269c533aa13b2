"""For research: features before the head, every state of a scan, the matrix of a recurrence, sequences reversed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import build, jit, over, random_coefficients, random_tokens, relative_error, trees_close
from registry import LANGUAGE_MODELS, MIXERS, OPERATORS

import ssmkit
from ssmkit import Extent, kernels


TIME, LENGTH = 13, 11
STARTS = np.isin(np.arange(TIME), [4, 9])
RECURRENCES = [
    case
    for case in OPERATORS
    if isinstance(eqx.filter_eval_shape(case.make, jax.random.key(0)), ssmkit.DiagonalChunkedRecurrence)
]


def sample(case):
    return case.sample(np.random.default_rng(0), TIME)


# Every state.


@over(RECURRENCES)
def test_the_state_after_every_token(case):
    """It is what the chunked scan ends with where no more tokens count."""
    recurrence, inputs, extent = build(case), sample(case), Extent(LENGTH, STARTS)
    before = recurrence.init_state() + 1
    got = jit(lambda x: recurrence.states(x, before, extent))(inputs)
    scan = jit(lambda x, length: recurrence.chunk_scan(x, before, Extent(length, STARTS))[1])
    expected = jnp.stack([scan(inputs, jnp.minimum(t + 1, LENGTH)) for t in range(TIME)])
    assert trees_close(got, expected, case.bound)


# The matrix.


@over(RECURRENCES)
def test_the_matrix_times_the_values_are_the_outputs(case):
    recurrence, inputs = build(case), sample(case)
    values = jax.vmap(recurrence.coefficients)(inputs).value
    for starts in (None, STARTS):
        outputs, _ = eqx.filter_jit(recurrence.chunk_scan)(inputs, recurrence.init_state(), Extent(starts=starts))
        matrix = np.asarray(eqx.filter_jit(recurrence.matrix)(inputs, Extent(starts=starts)))
        q, r = "q" * (outputs.ndim - 3), "r" * (values.ndim - 3)
        assert relative_error(np.einsum(f"ht{q}s{r},sh{r}v->th{q}v", matrix, values), outputs) <= case.bound
        by_tokens = np.moveaxis(matrix, 2 + len(q), 2)  # heads, time, time, and what else there is
        sequence, token = np.cumsum(STARTS), np.arange(TIME)
        assert not by_tokens[:, token[:, None] < token].any()
        assert starts is None or not by_tokens[:, sequence[:, None] != sequence].any()


def test_what_does_not_count_is_zero_in_the_matrix():
    case = next(case for case in RECURRENCES if case.id == "gla-recurrence")
    recurrence, inputs = build(case), sample(case)
    whole, part = (np.asarray(eqx.filter_jit(recurrence.matrix)(inputs, Extent(length))) for length in (TIME, LENGTH))
    assert not part[:, LENGTH:].any() and not part[:, :, LENGTH:].any()
    assert relative_error(part[:, :LENGTH, :LENGTH], whole[:, :LENGTH, :LENGTH]) <= 1e-6


@pytest.mark.parametrize("bonus", [False, True])
def test_the_matrix_is_the_sum_that_it_stands_for(bonus):
    """In float64, from the definition, with groups and one decay per key: 1e-6 is float32 rounding."""
    coefficients, _ = random_coefficients(
        0, time=7, heads=4, groups=2, key=3, value=2, cumulative=-9.0, chunk=7, decays=3, bonus=bonus
    )
    c = jax.tree.map(lambda array: np.asarray(array, np.float64), coefficients)
    write, read = (np.repeat(array, 2, axis=1) for array in (c.write, c.read))
    expected = np.zeros((4, 7, 7))
    for t in range(7):
        for s in range(t + 1):
            decay = np.exp(c.log_decay[s + 1 : t + 1 - bonus].sum(axis=0))
            own = c.bonus[t] if bonus and s == t else decay
            expected[:, t, s] = (read[t] * own * write[s]).sum(axis=-1)
    assert relative_error(kernels.matrix(coefficients), expected) <= 1e-6


def test_several_writes_and_reads_have_entries_of_their_own():
    sizes = dict(time=5, heads=2, groups=1, key=3, value=4, cumulative=-5.0, chunk=5)
    coefficients, state = random_coefficients(1, **sizes, rank=(2,), reads=(3,))
    matrix = kernels.matrix(coefficients)
    assert matrix.shape == (2, 5, 3, 5, 2)
    outputs, _ = kernels.reference(coefficients, jnp.zeros_like(state))
    assert relative_error(jnp.einsum("htqsr,shrv->thqv", matrix, coefficients.value), outputs) <= 2e-6


def test_mistakes_are_told():
    case = next(case for case in RECURRENCES if case.id == "gla-recurrence")
    recurrence, inputs = build(case), sample(case)
    one = jax.tree.map(lambda array: array[0], inputs)
    with pytest.raises(ValueError, match=r"GLARecurrence: `state` must have shape \(heads, key, value\)"):
        recurrence.states(inputs, jnp.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="`extent` must be an `ssmkit.Extent"):
        recurrence.matrix(inputs, 3)
    with pytest.raises(ValueError, match=r"GLARecurrence.*`inputs` are those of one token"):
        recurrence.matrix(one)
    with pytest.raises(ValueError, match="`coefficients` must be those of many tokens"):
        kernels.matrix(recurrence.coefficients(one))
    with pytest.raises(ValueError, match="`coefficients` must be `ssmkit.Coefficients`, got int"):
        kernels.states(3, jnp.zeros((1, 1, 1)))


# Reversed sequences.


def _pieces(length, starts) -> list[range]:
    ends = [0, *np.flatnonzero(starts[:length]), length]
    return [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]


@pytest.mark.parametrize("length", [None, 0, 1, LENGTH, TIME])
@pytest.mark.parametrize("starts", [None, STARTS, np.eye(TIME, dtype=bool)[0], np.ones(TIME, bool)])
def test_each_sequence_is_reversed_where_it_stands(length, starts):
    x = {"a": np.arange(TIME), "b": np.arange(2.0 * TIME).reshape(TIME, 2)}
    got = jax.jit(ssmkit.reverse)(x, Extent(length, starts))
    stop = TIME if length is None else length
    order = [t for piece in _pieces(stop, np.zeros(TIME, bool) if starts is None else starts) for t in reversed(piece)]
    order += range(stop, TIME)
    assert all(np.array_equal(got[name], x[name][order]) for name in x)
    twice = ssmkit.reverse(got, Extent(length, starts))
    assert all(np.array_equal(twice[name], x[name]) for name in x)


@over(MIXERS, "mamba2-mixer-groups2-biases", "gla-mixer", "rg-lru-mixer")
def test_a_mixer_backwards_is_one_on_each_reversed_sequence(case):
    mixer, x, extent = build(case), sample(case), Extent(LENGTH, STARTS)
    run = jit(lambda x, extent: mixer.prefill(x, mixer.init_cache(), extent)[0])
    got = ssmkit.reverse(run(ssmkit.reverse(x, extent), extent), extent)
    for piece in _pieces(LENGTH, STARTS):
        alone = run(x[piece.start : piece.stop][::-1], Extent())[::-1]
        assert trees_close(got[piece.start : piece.stop], alone, case.bound)


@pytest.mark.parametrize(
    ("x", "extent", "message"),
    [
        (jnp.zeros(()), Extent(), "`x` must be arrays with the same leading axis"),
        ((jnp.zeros(2), jnp.zeros(3)), Extent(), r"`x` must be arrays with the same leading .* \[\(2,\), \(3,\)\]"),
        ((), Extent(), "`x` must be arrays with the same leading axis"),
        (jnp.zeros(3), Extent(length=4), "`length` must"),
        (jnp.zeros(3), 3, "`extent` must be an `ssmkit.Extent"),
    ],
)
def test_what_cannot_be_reversed(x, extent, message):
    with pytest.raises(ValueError, match=message):
        ssmkit.reverse(x, extent)


# Features.


@over(LANGUAGE_MODELS, "mamba2", "mamba2-groups2-biases-limits-D_has_hdim-tied")
def test_the_head_makes_logits_of_features(case):
    model, tokens = build(case), random_tokens(np.random.default_rng(0), TIME)
    logits, cache = eqx.filter_jit(model.forward)(tokens, model.init_cache(), Extent(LENGTH))
    features, same = jit(lambda tokens: model.features(tokens, length=LENGTH))(tokens)
    head = model.embedding if model.head is None else model.head
    assert trees_close((features @ head.weight.T)[:LENGTH, : model.vocab_size], logits[:LENGTH], case.bound)
    assert trees_close(same, cache, case.bound)
    first, cache = eqx.filter_jit(model.features)(tokens[:5])
    rest, _ = eqx.filter_jit(model.features)(tokens[5:], cache)
    assert trees_close(jnp.concatenate([first, rest])[:LENGTH], features[:LENGTH], case.bound)


def test_features_are_dropped_with_a_key_alone():
    mlp = ssmkit.GatedMLP(4, intermediate_size=8, key=jax.random.key(0))
    model = ssmkit.with_dropout(ssmkit.LanguageModel(7, 4, [mlp], key=jax.random.key(1)), 0.5)
    tokens = jnp.arange(6)
    plain, dropped = model.features(tokens)[0], model.features(tokens, key=jax.random.key(2))[0]
    assert not np.array_equal(plain, dropped)
    with pytest.raises(ValueError, match="`cache` must hold one entry per block"):
        model.features(tokens, ())
