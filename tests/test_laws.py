"""The laws of sequence operators, mixers and language models, over everything in the registry.

Everything is checked by `ssmkit.testing`, as users check their own classes; the same laws are then tried on random
sequences, splits and lengths for one of each kind.
"""

import functools
import io

import equinox as eqx
import helpers
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Case, jit, over, relative_error, trees_close, trees_equal_bitwise
from registry import EVERYTHING, LANGUAGE_MODELS, MIXERS, OPERATORS

import ssmkit
from ssmkit import testing
from ssmkit.testing import _laws as laws
from ssmkit.testing._subject import Subject, methods, to_numpy
from ssmkit.training._gathered import GatheredBlock


TIME = 11  # chunks are of 4 tokens: two full ones and a ragged one
# One of each kind, for what is compiled for the occasion.
FEW = over(
    EVERYTHING, "mamba2-recurrence-groups2-time_step_limit", "conv-kernel4", "mamba2-mixer-groups2-biases", "toy"
)
# One of each kind that the framework itself has, for random examples.
SEVERAL = over(
    EVERYTHING,
    "mamba2-recurrence-groups2-time_step_limit",
    "shift",
    "stabiliser",
    "running-phase",
    "conv-kernel4",
    "gated-mlp",
    "mamba2-mixer-groups2-biases",
    "language-model",
    "attention-window3",
    "hybrid",
)

# Between them they have every operator, and a recurrence of every family.
STARTING = over(
    MIXERS,
    "mamba2-mixer-groups2-biases",
    "rwkv6-mixer",
    "mlstm-mixer",
    "mamba3-mixer",
    "rg-lru-mixer",
    "attention-mixer-norms-gate-biases",
)


def sample(case: Case, seed: int, time: int = TIME):
    return to_numpy(case.sample(np.random.default_rng(seed), time))


@functools.cache
def subject(case: Case) -> Subject:
    """The case, built and compiled."""
    return Subject(helpers.build(case), sample(case, 0))


def warm(case: Case, seed: int, tokens: int):
    """A cache with a past of so many tokens."""
    return subject(case).warm(tokens, sample(case, seed))


@over(EVERYTHING, first=[pytest.mark.newest])
def test_every_law(case):
    """As users check: the worst errors seen are a third of the bounds."""
    check = testing.check_recurrence
    module, inputs = helpers.build(case), sample(case, 0)
    if case in OPERATORS and not isinstance(module, ssmkit.DiagonalChunkedRecurrence):
        check = testing.check_operator
    elif case in MIXERS:
        check = testing.check_mixer
    elif case in LANGUAGE_MODELS:
        check = testing.check_model
    narrow = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(eqx.filter(module, eqx.is_array)))
    gradient = 2 * helpers.BF16_BOUND if narrow else GRADIENT_BOUND
    report = check(module, inputs, tolerance=case.bound, gradient=gradient)
    assert len({finding.law for finding in report.findings}) >= 8


# Gradients add up what one token did to all later ones.
GRADIENT_BOUND = 1e-5

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(0, TIME)
masks = st.lists(st.booleans(), min_size=TIME, max_size=TIME)


def holds(findings) -> bool | helpers.Difference:
    """Whether every finding does, and else which do not."""
    broken = [str(finding) for finding in findings if not finding.holds]
    return helpers.Difference("\n".join(broken)) if broken else bool(findings)


@SEVERAL
@pytest.mark.once
@hypothesis.given(seed=seeds, past=lengths, length=lengths)
def test_many_tokens_equal_iterated_steps(case, seed, past, length):
    arguments = subject(case), sample(case, seed), warm(case, seed + 1, past)
    assert holds(laws.many_equal_steps(*arguments, length, case.bound))


@SEVERAL
@pytest.mark.once
@hypothesis.given(seed=seeds, past=lengths, split=lengths)
def test_a_sequence_may_be_split_anywhere(case, seed, past, split):
    assert holds(laws.splits(subject(case), sample(case, seed), warm(case, seed + 1, past), split, case.bound))


@SEVERAL
@pytest.mark.once
@hypothesis.given(seed=seeds, past=lengths, length=lengths)
def test_tokens_past_the_length_leave_no_trace(case, seed, past, length):
    assert holds(laws.padding(subject(case), sample(case, seed), warm(case, seed + 1, past), length))


@SEVERAL
@pytest.mark.once
@hypothesis.given(seed=seeds, past=lengths)
def test_no_valid_token_leaves_the_cache_as_it_was(case, seed, past):
    assert holds(laws.identity(subject(case), sample(case, seed), warm(case, seed + 1, past)))


@SEVERAL
@pytest.mark.once
@hypothesis.given(seed=seeds, past=lengths, valid=masks)
def test_invalid_steps_between_valid_ones_leave_no_trace(case, seed, past, valid):
    arguments = subject(case), sample(case, seed), warm(case, seed + 1, past)
    assert holds(laws.invalid_steps(*arguments, np.asarray(valid)))


@SEVERAL
@pytest.mark.once
@hypothesis.given(seed=seeds, past=lengths, begins=st.sets(st.integers(0, TIME - 1)), length=lengths)
def test_a_start_forgets(case, seed, past, begins, length):
    arguments = subject(case), sample(case, seed), warm(case, seed + 1, past)
    assert holds(laws.starts(*arguments, sorted(begins), length, case.bound))


@STARTING
def test_gradients_stop_at_a_start(case):
    """Packed, and one sequence after the other."""
    this, inputs, cache = subject(case), sample(case, 2), warm(case, 1, 5)
    _, many, _ = methods(this.module)
    cut, starts = 4, jnp.arange(TIME) == 4

    def apart(inputs, cache):
        piece = lambda part: jax.tree.map(lambda array: array[part], inputs)
        first, _ = many(piece(slice(cut)), cache)
        second, after = many(piece(slice(cut, None)), this.init)
        return jnp.concatenate([first, second]), after

    def gradients(run):
        weighed = lambda leaf: jnp.sum(jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape) * leaf)
        loss = lambda *given: sum(map(weighed, filter(eqx.is_inexact_array, jax.tree.leaves(run(*given)))))
        found = jit(jax.grad(loss, argnums=(0, 1), allow_int=True))(inputs, cache)
        return to_numpy(jax.tree.map(lambda leaf: None if leaf.dtype == jax.dtypes.float0 else leaf, found))

    packed = gradients(lambda inputs, cache: many(inputs, cache, ssmkit.Extent(starts=starts)))
    assert trees_close(packed, gradients(apart), GRADIENT_BOUND)
    assert not trees_close(packed, gradients(many), 0.01)


@SEVERAL
@pytest.mark.once
@hypothesis.given(seed=seeds, past=lengths, token=st.integers(1, TIME - 1))
def test_no_output_depends_on_later_inputs(case, seed, past, token):
    """And what depends on earlier ones is not lost."""
    this, inputs, cache = subject(case), sample(case, seed), warm(case, seed + 1, past)
    assert this.last_only or holds(laws.causality(this, inputs, cache, token))
    later = this.many(sample(case, seed + 2), cache, TIME)
    assert not trees_equal_bitwise(this.many(inputs, cache, TIME), later)


def test_the_configured_chunk_size_reaches_the_recurrences():
    config = helpers.mamba2_config(chunk_size=7, num_hidden_layers=2)
    model = eqx.filter_eval_shape(ssmkit.models.Mamba2, config, key=jax.random.key(0))
    assert [block.mixer.recurrence.chunk_size for block in model.blocks] == [7, 7]


@over(LANGUAGE_MODELS, "toy")
def test_calling_a_model_starts_from_nothing(case):
    this, tokens = subject(case), sample(case, 2)
    logits = to_numpy(jit(lambda tokens: this.module(tokens))(tokens))
    ones = np.ones(TIME, bool)
    assert logits.shape == (TIME, helpers.VOCAB)
    assert logits.dtype == jnp.float32
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
        piece = lambda start, stop: jax.tree.map(lambda array: array[start:stop], inputs)
        first, cache = many(piece(0, 3), cache)
        second, cache = step(jax.tree.map(lambda array: array[3], inputs), cache)
        third, cache = many(piece(4, TIME + 1), cache)
        return (first, second[None], third), cache

    parts, after = to_numpy(run(inputs, cache))
    expected, expected_after = this.steps(inputs, cache, np.ones(TIME + 1, bool))
    assert trees_close(after, expected_after, case.bound)
    if this.last_only:
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
    stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    run = jax.vmap(lambda inputs, cache, length: many(inputs, cache, ssmkit.Extent(length)))
    outputs, after = to_numpy(jit(run)(stack(inputs), stack(caches), lengths))
    for row, length in enumerate(map(int, lengths)):
        pick = lambda tree: jax.tree.map(lambda array: array[row], tree)  # noqa: B023
        expected, expected_after = this.many(inputs[row], caches[row], length)
        got = this.valid_outputs(outputs[row], length), pick(after)
        assert trees_close(got, (this.valid_outputs(expected, length), expected_after), case.bound)
    assert trees_equal_bitwise(jax.tree.map(lambda array: array[0], after), caches[0])


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
    as_struct = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf
    like = jax.tree.map(as_struct, (this.module, jax.tree.map(jnp.asarray, cache)))
    module, restored = eqx.tree_deserialise_leaves(buffer, like)
    assert trees_equal_bitwise(eqx.filter(module, eqx.is_array), eqx.filter(this.module, eqx.is_array))
    assert trees_equal_bitwise(restored, cache)


def test_the_registry_holds_every_operator_mixer_and_model():
    roots = (ssmkit.AbstractSequenceOperator, ssmkit.AbstractMixer, ssmkit.AbstractLanguageModel)
    concrete = {cls for cls in helpers.module_classes() if issubclass(cls, roots) and not helpers.is_abstract(cls)}
    registered = {type(subject(case).module) for case in EVERYTHING}
    # Any of these, exported: test_export.py; blocks of these, stacked: the model "scanned"; and blocks that gather
    # themselves: test_training_meshes.py.
    assert concrete == registered | {ssmkit.ExportedModel, ssmkit.ScannedBlocks, GatheredBlock}
    assert len({case.id for case in EVERYTHING}) == len(EVERYTHING)
