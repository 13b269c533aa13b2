"""What `generate`, `resume` and `stream` refuse, in one sentence."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generating import ROWS, SAMPLER, VOCAB, mamba2, toy

import ssmkit
from ssmkit.models import ToySSM


pytestmark = pytest.mark.usefixtures("quick_compilation")


def call(**changes):
    settings = {"prompts": ROWS, "max_new_tokens": 2, **changes}
    return ssmkit.generate(toy(), settings.pop("prompts"), **settings)


def cache_of(*batch, dtype="float32"):
    """What the toy's cache looks like."""
    return (np.zeros((*batch, 2, 8, 8), dtype),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "`prompts` must hold at least one prompt, got none"),
        ({"prompts": np.zeros((0, 3), int)}, "`prompts` must hold at least one prompt, got none"),
        ({"prompts": [[1], []]}, "prompt 1 is empty: .* such as the BOS id"),
        ({"prompts": np.zeros((2, 0), int)}, "prompt 0 is empty"),
        ({"prompts": [[1], [2, VOCAB]]}, rf"prompt 1 must have ids in \[0, {VOCAB}\), got ids from 2 to {VOCAB}"),
        ({"prompts": [[-1, 3]]}, "prompt 0 must have ids .* got ids from -1 to 3. Is this the model's tokenizer"),
        ({"prompts": np.array([[1.0, 2.0]])}, "`prompts` must be integer ids .* got float64 of shape"),
        ({"prompts": np.array([[True]])}, "`prompts` must be integer ids .* got bool"),
        ({"prompts": np.array([1, 2])}, r"`prompts` must be integer ids of shape \(batch, time\), .* \(2,\)"),
        ({"prompts": np.zeros((1, 2, 3), int)}, "`prompts` must be integer ids"),
        ({"lengths": [5, 1, 10, 3]}, "`lengths` belongs to an array of prompts"),
        ({"prompts": np.ones((2, 3), int), "lengths": [3]}, r"`lengths` must be 2 integers, one per prompt, got \[3\]"),
        ({"prompts": np.ones((1, 3), int), "lengths": np.array([1.5])}, "`lengths` must be 1 integers"),
        ({"prompts": np.ones((1, 3), int), "lengths": np.array(2)}, "`lengths` must be 1 integers"),
        ({"prompts": np.ones((2, 3), int), "lengths": [3, 0]}, r"`lengths` must lie in \[1, 3\], .* got \[3, 0\]"),
        ({"prompts": np.ones((2, 3), int), "lengths": [4, 1]}, r"`lengths` must lie in \[1, 3\], .* got \[4, 1\]"),
        (
            {"prompts": "ROMEO."},
            "`prompts` must be integer ids .*, got 'ROMEO.'. Texts need `tokenizer=`",
        ),
        ({"prompts": ["ROMEO."]}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got 'ROMEO.'. Texts need"),
        ({"prompts": None}, "`prompts` must be integer ids .*, got None"),
        ({"prompts": [None]}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got None"),
        ({"prompts": 5}, "`prompts` must be integer ids"),
        ({"prompts": [1, 2]}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got int64 of shape \(\)"),
        (
            {"prompts": [[[1], [2, 3]]]},
            r"`prompts\[0\]` must be integer ids of shape \(time,\), got \[\[1\], \[2, 3\]\]",
        ),
        ({"prompts": [[1.5]]}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got float64 of shape \(1,\)"),
        ({"prompts": [[1, "2"]]}, r"`prompts\[0\]` must be .*, got \[1, '2'\]"),
        ({"prompts": [[True]]}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got bool"),
        ({"prompts": {1: 2}}, r"`prompts` must be integer ids .*, got \{1: 2\}"),
        (
            {"prompts": [[2**64]]},
            r"`prompts\[0\]` must be integer ids of shape \(time,\), got \[18446744073709551616\]",
        ),
        (
            {"prompts": np.ones((2, 3), int), "lengths": [[1], [2, 3]]},
            r"`lengths` must be 2 integers, .* got \[\[1\], ",
        ),
        ({"prompts": np.ones((1, 3), int), "lengths": "1"}, "`lengths` must be 1 integers, one per prompt, got '1'"),
        ({"prompts": np.ones((1, 3), int), "lengths": [True]}, r"`lengths` must be 1 integers, .* got \[True\]"),
        ({"max_new_tokens": -1}, "`max_new_tokens` must be an integer in .*, got -1"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be an integer in .*, got True"),
        ({"max_new_tokens": 2.0}, "`max_new_tokens` must be an integer in .*, got 2.0"),
        ({"max_new_tokens": "2"}, "`max_new_tokens` must be an integer in .*, got '2'"),
        ({"max_new_tokens": None}, "`max_new_tokens` must be an integer in .*, got None"),
        ({"max_new_tokens": jnp.array([2])}, "`max_new_tokens` must be one integer, or one per prompt, 4, got 1"),
        ({"max_new_tokens": [2, 3, -1, 4]}, "`max_new_tokens` must be an integer in .*, got -1"),
        ({"sampler": [ssmkit.Greedy()] * 3}, "`sampler` must be one sampler, or one per prompt, 4, got 3"),
        ({"sampler": [ssmkit.Greedy()] * 3 + ["greedy"]}, "`sampler` must be a sampler such as .*, got 'greedy'"),
        ({"sampler": [ssmkit.Greedy()] * 3 + [SAMPLER]}, "`key` is needed by Sampler"),
        ({"stop_token": [[1], None, (), [VOCAB]]}, rf"`stop_token` must have ids in .*, got \[{VOCAB}\]"),
        ({"max_new_tokens": 10**5000}, "`max_new_tokens` must be an integer in .*, got an integer of"),
        ({"sampler": "greedy"}, r"`sampler` must be a sampler such as `ssmkit.Greedy\(\)`, got 'greedy'"),
        ({"key": 0}, r"`key` must be made by `jax.random.key\(seed\)`, got 0"),
        ({"key": jnp.zeros(3)}, r"`key` must be made by `jax.random.key\(seed\)`, got Array\(\[0., 0., 0.\]"),
        ({"key": jnp.zeros(3, jnp.uint32)}, r"`key` must be made by `jax.random.key\(seed\)`"),
        ({"stop_token": "end"}, r"`stop_token` must have ids in .*, got \['end'\]"),
        ({"stop_token": True}, r"`stop_token` must have ids in .*, got \[True\]"),
        ({"stop_token": [[1], [2, 3]]}, "`stop_token` must be ids for all prompts, or one entry per prompt, 4, got 2"),
        ({"stop_token": VOCAB}, rf"`stop_token` must have ids in \[0, {VOCAB}\), got \[{VOCAB}\]"),
        ({"stop_token": [3, -1]}, r"`stop_token` must have ids .* got \[-1\]"),
        ({"sampler": SAMPLER}, r"`key` is needed by Sampler: pass `key=jax.random.key\(seed\)`"),
        (
            {"key": jax.random.split(jax.random.key(0), 3)},
            r"`key` must be one key or one per prompt, 4, got shape \(3,\)",
        ),
        ({"cache": ()}, "`cache` must have the structure of `model.init_cache"),
        ({"cache": cache_of(3)}, r"leading batch axis of 4 .* got float32\(3, .* expected float32\(4, "),
        ({"cache": cache_of(4, dtype="float16")}, r"`cache` must .* got float16\(4, .* expected float32\(4, "),
        ({"cache": cache_of()}, "`cache` must have a leading batch axis of 4"),
    ],
)
def test_what_generate_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_what_resume_refuses():
    model = toy()
    out = ssmkit.generate(model, ROWS, 2)
    with pytest.raises(ValueError, match="`max_new_tokens` must be an integer in .*, got -3"):
        ssmkit.resume(model, out, -3)
    with pytest.raises(ValueError, match="`stop_token` must have ids"):
        ssmkit.resume(model, out, 2, stop_token=VOCAB)
    with pytest.raises(
        ValueError, match="`sampler` has a repetition penalty, but `generation` was made by one without"
    ):
        ssmkit.resume(model, out, 2, SAMPLER)
    with pytest.raises(ValueError, match="`cache` must have the structure of `model.init_cache"):
        ssmkit.resume(mamba2(), out, 2)
    fewer = eqx.tree_at(lambda g: g.rows.cache, out, jax.tree.map(lambda x: x[:3], out.cache))
    with pytest.raises(ValueError, match="leading batch axis of 4"):
        ssmkit.resume(model, fewer, 2)


def test_what_is_no_model_is_refused():
    for call in (ssmkit.generate, ssmkit.stream):
        with pytest.raises(ValueError, match="`model` must be an `ssmkit.AbstractLanguageModel`, got NoneType"):
            call(None, [[1]])


def test_integers_of_every_library():
    model = toy()
    expected = ssmkit.generate(model, ROWS, 3, stop_token=4).tokens
    for kind in (np.int64, np.uint8, jnp.asarray):
        np.testing.assert_array_equal(ssmkit.generate(model, ROWS, kind(3), stop_token=kind(4)).tokens, expected)


def other_vocabulary():
    """A model whose cache is of the toy's form."""
    return ToySSM(VOCAB + 2, width=16, layers=1, heads=2, key=jax.random.key(1))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda out: None, "`generation` must be what `ssmkit.generate` returns, got NoneType"),
        (lambda out: out.cache, "`generation` must be what `ssmkit.generate` returns, got tuple"),
        (
            lambda out: ssmkit.generate(other_vocabulary(), ROWS, 2),
            r"`generation` is not of this model: `logits` must have the axes \('batch', 'vocab'\) with "
            rf"{{'batch': 4, 'vocab': {VOCAB}}}, got shape \(4, {VOCAB + 2}\)",
        ),
        (
            lambda out: eqx.tree_at(lambda g: g.rows.finished, out, out.finished[:2]),
            r"`finished` must have the axes \('batch',\) with {'batch': 4, .*, got shape \(2,\)",
        ),
        (lambda out: eqx.tree_at(lambda g: g.rows.keys, out, out.rows.keys[:2]), "`keys` must have the axes"),
    ],
    ids=["nothing", "a cache", "another vocabulary", "half of the flags", "half of the keys"],
)
def test_generations_that_do_not_fit(change, message):
    model = toy()
    with pytest.raises(ValueError, match=message):
        ssmkit.resume(model, change(ssmkit.generate(model, ROWS, 2)), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "ROMEO."}, r"`prompts\[0\]` must be integer ids of shape \(time,\), got 'ROMEO.'. Texts need"),
        ({"prompts": None}, "`prompts` must be integer ids .*, got None"),
        ({"prompts": [[1], 2]}, r"`prompts\[1\]` must be integer ids of shape \(time,\), got int64 of shape"),
        ({"prompts": np.ones((1, 2, 3), int)}, "`prompts` must be integer ids .*, got int64 of shape"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be an integer in"),
        ({"sampler": None}, "`sampler` must be a sampler such as"),
        ({"prompts": []}, "`prompts` must hold at least one prompt, got none"),
        ({"prompts": [[]]}, "prompt 0 is empty"),
        ({"prompts": np.array([VOCAB])}, "prompt 0 must have ids"),
        ({"prompts": np.array([1.0])}, "must be integer ids of shape .*, got float64"),
        ({"max_new_tokens": -1}, "`max_new_tokens` must be an integer in"),
        ({"stop_token": -5}, "`stop_token` must have ids"),
        ({"sampler": SAMPLER}, "`key` is needed by Sampler"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, "`key` must be one key or one per prompt, 1"),
    ],
)
def test_stream_refuses_at_the_call(changes, message):
    settings = {"prompts": [1, 2], **changes}
    with pytest.raises(ValueError, match=message):
        ssmkit.stream(toy(), **settings)


def test_numbers_that_are_not_finite_are_reported(model):
    broken = eqx.tree_at(lambda m: m.norm.weight, model, replace_fn=lambda weight: weight * jnp.nan)
    with pytest.raises(
        FloatingPointError, match=r"not finite in rows \[0, 1, 2, 3\]: its weights or its cache hold NaN"
    ):
        ssmkit.generate(broken, ROWS, 9)
    with pytest.raises(FloatingPointError, match=r"rows \[0\]"):
        next(ssmkit.stream(broken, ROWS[0], 9))
    out = ssmkit.generate(model, ROWS, 9)
    poisoned = jax.tree.map(lambda x: x.at[2].set(jnp.nan), out.cache)
    with pytest.raises(FloatingPointError, match=r"rows \[2\]"):
        ssmkit.generate(model, ROWS, 9, cache=poisoned)
    with pytest.raises(FloatingPointError, match=r"rows \[2\]"):
        ssmkit.resume(model, eqx.tree_at(lambda g: g.rows.cache, out, poisoned), 9)
