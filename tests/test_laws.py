"""The laws of sequence operators, mixers and language models, over everything in the registry.

Two programs are compiled per case: many tokens of which `length` are valid, and as many single steps of which some are
valid. Both take every sequence, split and length, so properties can be tried on many examples.
"""

import functools
import io
from typing import Any, NamedTuple

import equinox as eqx
import helpers
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    EVERYTHING,
    LANGUAGE_MODELS,
    MIXERS,
    OPERATORS,
    Case,
    all_finite,
    jit,
    methods,
    over,
    relative_error,
    trees_close,
    trees_equal_bitwise,
    with_chunk_size,
)

import ssmkit


TIME = 11  # chunks are of 4 tokens: two full ones and a ragged one
# One of each kind, for what is compiled for the occasion.
FEW = over(
    EVERYTHING, "mamba2-recurrence-groups2-time_step_limit", "conv-kernel4", "mamba2-mixer-groups2-biases", "toy"
)


class Subject(NamedTuple):
    """A case, built and compiled."""

    module: Any
    init: Any  # the cache before the first token
    many: Any  # inputs, cache, length -> outputs, cache
    steps: Any  # inputs, cache, valid -> outputs of every step, cache


@functools.cache
def subject(case: Case) -> Subject:
    module = helpers.build(case)
    dynamic, static = eqx.partition(module, eqx.is_array)

    def many(dynamic, inputs, cache, length):
        return methods(eqx.combine(dynamic, static))[1](inputs, cache, length=length)

    def steps(dynamic, inputs, cache, valid):
        _, _, step = methods(eqx.combine(dynamic, static))

        def body(cache, token):
            outputs, cache = step(token[0], cache, valid=token[1])
            return cache, outputs

        cache, outputs = jax.lax.scan(body, cache, (inputs, valid))
        return outputs, cache

    many, steps = functools.partial(jit(many), dynamic), functools.partial(jit(steps), dynamic)
    return Subject(
        module, to_numpy(methods(module)[0]()), lambda *a: to_numpy(many(*a)), lambda *a: to_numpy(steps(*a))
    )


def to_numpy(tree):
    """What goes in and out is cut and joined as NumPy arrays: JAX would compile every new shape of a slice."""
    return jax.tree.map(np.asarray, tree)


def sample(case: Case, seed: int, time: int = TIME):
    return to_numpy(case.sample(np.random.default_rng(seed), time))


def warm(case: Case, seed: int, tokens: int):
    """A cache with a past of so many tokens."""
    this = subject(case)
    return this.many(sample(case, seed), this.init, tokens)[1]


def mixed(first, second, use_first):
    """Tokens of the first sequence where `use_first`, else of the second."""

    def select(a, b):
        return np.where(np.reshape(use_first, (TIME,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, first, second)


def rolled(inputs, tokens: int):
    """The sequence without its first tokens, which follow as garbage."""
    return jax.tree.map(lambda array: np.concatenate([array[tokens:], array[:tokens]]), inputs)


def valid_outputs(case: Case, outputs, length: int):
    """The outputs that `many` promises: of every valid token, or of a language model at the last one."""
    if case.is_language_model:
        return outputs[None][: min(length, 1)]
    return outputs[:length]


def matching_steps(case: Case, outputs, length: int):
    """The same ones of the steps."""
    return outputs[max(length - 1, 0) : length] if case.is_language_model else outputs[:length]


seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(0, TIME)
masks = st.lists(st.booleans(), min_size=TIME, max_size=TIME)


@over(EVERYTHING)
@hypothesis.given(seed=seeds, past=lengths, length=lengths)
def test_many_tokens_equal_iterated_steps(case, seed, past, length):
    this, cache, inputs = subject(case), warm(case, seed + 1, past), sample(case, seed)
    outputs, after = this.many(inputs, cache, length)
    expected, expected_after = this.steps(inputs, cache, np.arange(TIME) < length)
    assert trees_close(
        (valid_outputs(case, outputs, length), after),
        (matching_steps(case, expected, length), expected_after),
        case.bound,
    )


@over(EVERYTHING)
@hypothesis.given(seed=seeds, past=lengths, split=lengths)
def test_a_sequence_may_be_split_anywhere(case, seed, past, split):
    this, cache, inputs = subject(case), warm(case, seed + 1, past), sample(case, seed)
    whole, after = this.many(inputs, cache, TIME)
    first, between = this.many(inputs, cache, split)
    second, after_both = this.many(rolled(inputs, split), between, TIME - split)
    assert trees_close(after_both, after, case.bound)
    parts = [valid_outputs(case, first, split), valid_outputs(case, second, TIME - split)]
    joined = parts[split < TIME] if case.is_language_model else np.concatenate(parts)
    assert relative_error(joined, valid_outputs(case, whole, TIME)) <= case.bound


@over(EVERYTHING)
@hypothesis.given(seed=seeds, past=lengths, length=lengths)
def test_tokens_past_the_length_leave_no_trace(case, seed, past, length):
    """Neither in the cache nor in the outputs before them, bit for bit; and nothing they cause is NaN or infinite."""
    this, cache, inputs = subject(case), warm(case, seed + 1, past), sample(case, seed)
    one, other = (mixed(inputs, sample(case, seed + garbage), np.arange(TIME) < length) for garbage in (2, 3))
    outputs, after = this.many(one, cache, length)
    other_outputs, other_after = this.many(other, cache, length)
    assert trees_equal_bitwise(after, other_after)
    assert np.array_equal(valid_outputs(case, outputs, length), valid_outputs(case, other_outputs, length))
    assert all_finite((outputs, after))


@over(EVERYTHING)
@hypothesis.given(seed=seeds, past=lengths)
def test_no_valid_token_leaves_the_cache_as_it_was(case, seed, past):
    this, cache, inputs = subject(case), warm(case, seed + 1, past), sample(case, seed)
    outputs, after = this.many(inputs, cache, 0)
    assert trees_equal_bitwise(after, cache)
    assert all_finite(outputs)
    outputs, after = this.steps(inputs, cache, np.zeros(TIME, bool))
    assert trees_equal_bitwise(after, cache)
    assert all_finite(outputs)


@over(EVERYTHING)
@hypothesis.given(seed=seeds, past=lengths, valid=masks)
def test_invalid_steps_between_valid_ones_leave_no_trace(case, seed, past, valid):
    """Steps with `valid=False` in between, whatever their tokens, equal the valid steps alone, bit for bit."""
    this, cache, inputs = subject(case), warm(case, seed + 1, past), sample(case, seed)
    mask = np.asarray(valid)
    outputs, after = this.steps(mixed(inputs, sample(case, seed + 2), mask), cache, mask)
    order = np.argsort(~mask, kind="stable")  # valid ones first
    alone, alone_after = this.steps(jax.tree.map(lambda array: array[order], inputs), cache, mask[order])
    assert trees_equal_bitwise(after, alone_after)
    assert np.array_equal(outputs[mask], alone[: mask.sum()])
    assert all_finite(outputs)


@over(EVERYTHING)
def test_the_cache_never_changes_its_form(case):
    """Structure, shapes, dtypes, and no weak types, which would compile every function twice."""
    this, inputs = subject(case), sample(case, 0)
    init, many, step = methods(this.module)
    token = jax.tree.map(lambda array: array[0], inputs)
    runs = {
        "many": lambda inputs, _, cache: many(inputs, cache),
        "many, length": lambda inputs, _, cache: many(inputs, cache, length=3),
        "step": lambda _, token, cache: step(token, cache),
        "step, valid": lambda _, token, cache: step(token, cache, valid=True),
    }
    form = jax.eval_shape(init)
    assert not [leaf for leaf in jax.tree.leaves(form) if leaf.weak_type]
    for name, run in runs.items():
        _, after = jax.eval_shape(run, inputs, token, form)
        assert jax.tree.structure(after) == jax.tree.structure(form), name
        for got, expected in zip(jax.tree.leaves(after), jax.tree.leaves(form), strict=True):
            signature = (got.shape, got.dtype, got.weak_type)
            assert signature == (expected.shape, expected.dtype, expected.weak_type), name


def chunk_sizes(module) -> set[int | None]:
    is_recurrence = lambda node: isinstance(node, ssmkit.DiagonalChunkedRecurrence)  # noqa: E731
    leaves = jax.tree.leaves(module, is_leaf=is_recurrence)
    return {leaf.chunk_size for leaf in leaves if is_recurrence(leaf)}


@over(
    EVERYTHING,
    "mamba2-recurrence-groups1",
    "mamba2-recurrence-groups2-time_step_limit",
    "toy-recurrence",
    "mamba2-mixer-groups2-biases",
    "mamba2",
)
@pytest.mark.parametrize("chunk_size", [1, 64])
def test_results_do_not_depend_on_the_chunk_size(case, chunk_size):
    this = subject(case)
    module = with_chunk_size(this.module, chunk_size)
    assert chunk_sizes(module) == {chunk_size} != chunk_sizes(this.module)
    cache, inputs = warm(case, 1, 5), sample(case, 2)
    got = to_numpy(jit(lambda *arguments: methods(module)[1](*arguments))(inputs, cache))
    assert trees_close(got, this.many(inputs, cache, TIME), case.bound)


def test_the_configured_chunk_size_reaches_the_recurrences():
    config = helpers.mamba2_config(chunk_size=7, num_hidden_layers=2)
    model = eqx.filter_eval_shape(ssmkit.models.Mamba2, config, key=jax.random.key(0))
    assert [block.mixer.recurrence.chunk_size for block in model.blocks] == [7, 7]


@over(OPERATORS + MIXERS)
@hypothesis.given(seed=seeds, past=lengths, token=st.integers(0, TIME - 1))
def test_no_output_depends_on_later_inputs(case, seed, past, token):
    this, cache, inputs = subject(case), warm(case, seed + 1, past), sample(case, seed)
    changed = mixed(inputs, sample(case, seed + 2), np.arange(TIME) < token)
    outputs, after = this.many(inputs, cache, TIME)
    changed_outputs, changed_after = this.many(changed, cache, TIME)
    assert np.array_equal(outputs[:token], changed_outputs[:token])
    # And the change is not lost either.
    assert not np.array_equal(outputs[token], changed_outputs[token])


@over(LANGUAGE_MODELS)
def test_forward_gives_the_logits_of_every_step(case):
    """Also onto a cache that is not empty, and no logit depends on later tokens."""
    this = subject(case)
    cache, tokens = warm(case, 1, 5), sample(case, 2)
    run = jit(lambda tokens, cache: this.module.forward(tokens, cache))
    forward = lambda *arguments: to_numpy(run(*arguments))  # noqa: E731
    logits, after = forward(tokens, cache)
    assert trees_close((logits, after), this.steps(tokens, cache, np.ones(TIME, bool)), case.bound)
    assert logits.shape == (TIME, helpers.VOCAB)
    assert logits.dtype == jnp.float32
    changed, _ = forward(np.where(np.arange(TIME) < 7, tokens, (tokens + 1) % helpers.VOCAB), cache)
    assert np.array_equal(changed[:7], logits[:7])
    assert not np.array_equal(changed[7], logits[7])


@over(LANGUAGE_MODELS, "toy")
def test_calling_a_model_starts_from_nothing(case):
    this, tokens = subject(case), sample(case, 2)
    logits = to_numpy(jit(lambda tokens: this.module(tokens))(tokens))
    ones = np.ones(TIME, bool)
    assert trees_close(logits, this.steps(tokens, this.init, ones)[0], case.bound)
    assert relative_error(logits, this.steps(tokens, warm(case, 1, 5), ones)[0]) > 0.01  # a past would matter


@FEW
def test_pieces_without_padding(case):
    """`length=None`, with pieces of 3 and 8 tokens and a step between: no mask anywhere."""
    this = subject(case)
    cache, inputs = warm(case, 1, 5), sample(case, 2, TIME + 1)
    _, many, step = methods(this.module)

    @jit
    def run(inputs, cache):
        piece = lambda start, stop: jax.tree.map(lambda array: array[start:stop], inputs)  # noqa: E731
        first, cache = many(piece(0, 3), cache)
        second, cache = step(jax.tree.map(lambda array: array[3], inputs), cache)
        third, cache = many(piece(4, TIME + 1), cache)
        return (first, second[None], third), cache

    parts, after = to_numpy(run(inputs, cache))
    expected, expected_after = this.steps(inputs, cache, np.ones(TIME + 1, bool))
    assert trees_close(after, expected_after, case.bound)
    if case.is_language_model:
        assert trees_close(parts, (expected[2], expected[3][None], expected[TIME]), case.bound)
    else:
        assert relative_error(np.concatenate(parts), expected) <= case.bound


@FEW
def test_a_batch_is_what_its_sequences_are_alone(case):
    """Unequal pasts and lengths, under `vmap`."""
    this = subject(case)
    lengths = np.asarray([0, 1, 6, TIME])
    caches = [warm(case, seed, past) for seed, past in enumerate([3, 0, TIME, 8])]
    inputs = [sample(case, 10 + seed) for seed in range(4)]
    _, many, _ = methods(this.module)
    stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # noqa: E731
    run = jax.vmap(lambda inputs, cache, length: many(inputs, cache, length=length))
    outputs, after = to_numpy(jit(run)(stack(inputs), stack(caches), lengths))
    for row, length in enumerate(map(int, lengths)):
        pick = lambda tree: jax.tree.map(lambda array: array[row], tree)  # noqa: B023, E731
        expected, expected_after = this.many(inputs[row], caches[row], length)
        got = valid_outputs(case, outputs[row], length), pick(after)
        assert trees_close(got, (valid_outputs(case, expected, length), expected_after), case.bound)
    assert trees_equal_bitwise(jax.tree.map(lambda array: array[0], after), caches[0])


# Gradients add up what one token did to all later ones: 2e-6 is seen.
GRADIENT_BOUND = 1e-5


@over(EVERYTHING, "conv-kernel4", "mamba2-mixer-groups2-biases", "toy")
def test_gradients_of_many_tokens_equal_those_of_iterated_steps(case):
    """With respect to the cache, the parameters, and inputs that have gradients, from outputs and the cache alike."""
    this = subject(case)
    cache, inputs = warm(case, 1, 5), sample(case, 2)
    length, valid = 9, np.arange(TIME) < 9
    parameters, static = eqx.partition(this.module, eqx.is_inexact_array)
    weigh = lambda tree: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tree))  # noqa: E731

    def by_many(arguments):
        parameters, cache, inputs = arguments
        outputs, cache = methods(eqx.combine(parameters, static))[1](inputs, cache, length=length)
        return weigh((valid_outputs(case, outputs, length), cache))

    def by_steps(arguments):
        parameters, cache, inputs = arguments
        step = methods(eqx.combine(parameters, static))[2]

        def body(cache, token):
            outputs, cache = step(token[0], cache, valid=token[1])
            return cache, outputs

        cache, outputs = jax.lax.scan(body, cache, (inputs, valid))
        return weigh((matching_steps(case, outputs, length), cache))

    # Integer inputs have no gradient: they get one of zeros of dtype float0, which says nothing.
    arguments = (parameters, cache, inputs)
    got, expected = (jit(jax.grad(f, allow_int=True))(arguments) for f in (by_many, by_steps))
    got, expected = (
        [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0] for tree in (got, expected)
    )
    assert len(got) >= len(jax.tree.leaves((parameters, cache)))
    assert trees_close(got, expected, GRADIENT_BOUND)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(expected[-1]))


@FEW
def test_a_donated_cache_is_updated_in_place(case):
    """Every leaf of the cache handed over is reused, also of the very first cache, and the answer is the same."""
    this = subject(case)
    init, _, step = methods(this.module)
    token = jax.tree.map(lambda array: array[0], sample(case, 2))
    run = jit(lambda token, cache: step(token, cache), donate_argnums=1)
    outputs, expected = this.steps(sample(case, 2), init(), np.arange(TIME) < 1)
    cache = init()
    assert run.lower(token, cache).as_text().count("tf.aliasing_output") == len(jax.tree.leaves(cache))
    assert trees_close(to_numpy(run(token, cache)), (outputs[0], expected), case.bound)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))


@over(EVERYTHING)
def test_parameters_and_cache_survive_serialisation(case):
    this = subject(case)
    cache = warm(case, 1, 5)
    buffer = io.BytesIO()
    eqx.tree_serialise_leaves(buffer, (this.module, cache))
    buffer.seek(0)
    as_struct = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf  # noqa: E731
    like = jax.tree.map(as_struct, (this.module, jax.tree.map(jnp.asarray, cache)))
    module, restored = eqx.tree_deserialise_leaves(buffer, like)
    assert trees_equal_bitwise(eqx.filter(module, eqx.is_array), eqx.filter(this.module, eqx.is_array))
    assert trees_equal_bitwise(restored, cache)


def test_the_registry_holds_every_operator_mixer_and_model():
    roots = (ssmkit.AbstractSequenceOperator, ssmkit.AbstractMixer, ssmkit.AbstractLanguageModel)
    concrete = {cls for cls in helpers.module_classes() if issubclass(cls, roots) and not helpers.is_abstract(cls)}
    registered = {type(subject(case).module) for case in EVERYTHING}
    assert concrete == registered
    assert len({case.id for case in EVERYTHING}) == len(EVERYTHING)
