"""Every published recurrence against its paper's equations in float64, and every mixer in the generation engine."""

import against
import cases_linear_attention
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles_linear_rnn
import pytest
from helpers import VOCAB, build, methods, over, trees_close
from registry import MIXERS

import ssmkit


pytestmark = pytest.mark.once


ORACLES = cases_linear_attention.ORACLES + oracles_linear_rnn.ORACLES
VARIANTS = oracles_linear_rnn.VARIANTS
FLOAT32 = [case.id for case in MIXERS if "bf16" not in case.id and case.id != "gated-mlp"]
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8]]


def random_state(module, rng: np.random.Generator):
    """A random state of the form of an empty one."""

    def draw(leaf):
        value = rng.normal(0.0, 0.3, leaf.shape)
        return jnp.asarray(value + 1j * value[::-1] if jnp.iscomplexobj(leaf) else value).astype(leaf.dtype)

    return jax.tree.map(draw, methods(module)[0]())


@pytest.mark.parametrize("oracle", [pytest.param(oracle, id=oracle.id) for oracle in ORACLES])
def test_the_published_recurrence(oracle):
    """Outputs, final state and every gradient, in chunks of any size and stepped, at decays from 1 - 1e-6 to 1e-30."""
    rng = np.random.default_rng(4)
    module = oracle.make()
    found = against.errors(module, oracle.oracle, oracle.sample(rng, against.TIME), random_state(module, rng))
    assert len(found) > 12
    assert {name: error for name, error in found.items() if not error <= against.BOUND} == {}


@pytest.mark.parametrize("oracle", [pytest.param(oracle, id=oracle.id) for oracle in VARIANTS])
def test_options_of_published_layers(oracle):
    """Outputs and final state, from a state that is not empty."""
    rng = np.random.default_rng(4)
    module = oracle.make()
    found = against.forward_errors(module, oracle.oracle, oracle.sample(rng, against.TIME), random_state(module, rng))
    assert len(found) > 1
    assert {name: error for name, error in found.items() if not error <= against.BOUND} == {}


@pytest.fixture
def quick_compilation():
    """What is computed matters here, not how fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@over(MIXERS, *FLOAT32)
def test_generation(case, quick_compilation):
    """A ragged batch is each prompt alone, and two parts are the whole."""
    key, mixer = jax.random.key(0), build(case)
    width = jax.tree.leaves(case.sample(np.random.default_rng(0), 1))[0].shape[-1]
    mixers = [
        mixer,
        ssmkit.GatedMLP(width, intermediate_size=5, key=key),
        mixer,
    ]  # two of them: their caches are kept apart
    model = ssmkit.LanguageModel(VOCAB, width, mixers, key=key)
    model = eqx.tree_at(lambda m: m.head.weight, model, replace_fn=lambda weight: 10.0 * weight)
    whole = ssmkit.generate(model, PROMPTS, 12)
    start = ssmkit.generate(model, PROMPTS, 5)
    end = ssmkit.resume(model, start, 7)
    np.testing.assert_array_equal(jnp.concatenate([start.tokens, end.tokens], axis=1), whole.tokens)
    assert trees_close((end.cache, end.rows.logits), (whole.cache, whole.rows.logits), 1e-5)
    for i, prompt in enumerate(PROMPTS):
        alone = ssmkit.generate(model, 3 * [prompt], 12)  # three times, so that nothing is compiled anew
        np.testing.assert_array_equal(alone.tokens[0], whole.tokens[i])
        first, row = (
            jax.tree.map(lambda leaf, i=i: leaf[i], (out.cache, out.rows.logits)) for out, i in ((alone, 0), (whole, i))
        )
        assert trees_close(first, row, 1e-5)
