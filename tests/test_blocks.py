"""Blocks are mixers of any kind that take the residual stream to itself, and dropout is a layer in them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import trees_equal_bitwise

import ssmkit
from ssmkit.models import GLAMixer


WIDTH, VOCAB = 8, 11
TOKENS = jnp.asarray([3, 1, 4, 1, 5], jnp.int32)


def mlp(seed):
    return ssmkit.GatedMLP(WIDTH, intermediate_size=6, key=jax.random.key(seed))


class Parallel(ssmkit.AbstractBlock[tuple[Any, Any]]):
    """Two branches of the same features, scaled and normalised after the sum."""

    norm: ssmkit.RMSNorm
    first: ssmkit.AbstractMixer[Any]
    second: ssmkit.AbstractMixer[Any]
    post_norm: ssmkit.RMSNorm
    scale: float = eqx.field(static=True)
    dropout: ssmkit.Dropout = ssmkit.Dropout()

    def init_cache(self):
        return self.first.init_cache(), self.second.init_cache()

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        return self._sum(x, lambda mixer, own: mixer.prefill(self.norm(x), own, extent), cache)

    def step(self, x, cache, *, valid=None):
        return self._sum(x, lambda mixer, own: mixer.step(self.norm(x), own, valid=valid), cache)

    def _sum(self, x, run, cache):
        first, one = run(self.first, cache[0])
        second, other = run(self.second, cache[1])
        return x + self.dropout(self.scale * self.post_norm(first + second)), (one, other)


def parallel(rate=0.0):
    recurrent = GLAMixer(WIDTH, num_heads=2, key=jax.random.key(3))
    norms = ssmkit.RMSNorm(WIDTH), ssmkit.RMSNorm(WIDTH)
    return Parallel(norms[0], mlp(1), recurrent, norms[1], 0.5, ssmkit.Dropout(rate))


def language_model(mixers, **options):
    return ssmkit.LanguageModel(VOCAB, WIDTH, mixers, key=jax.random.key(0), **options)


def test_blocks_of_any_kind_keep_the_laws_in_a_model():
    model = language_model([mlp(0), parallel(), ssmkit.ResidualBlock(ssmkit.LayerNorm(WIDTH), mlp(2))])
    assert [type(block).__name__ for block in model.blocks] == ["ResidualBlock", "Parallel", "ResidualBlock"]
    assert isinstance(model.blocks[2], ssmkit.ResidualBlock) and isinstance(model.blocks[2].norm, ssmkit.LayerNorm)
    ssmkit.testing.check_model(model, jnp.arange(8, dtype=jnp.int32))


def test_a_key_drops_features_and_no_key_drops_none():
    model = language_model([mlp(0), parallel()])
    dropping = ssmkit.with_dropout(model, 0.5)
    run = lambda model, key=None: model.forward(TOKENS, model.init_cache(), key=key)[0]
    keys = jax.random.key(1), jax.random.key(2)
    expected = run(model)
    assert trees_equal_bitwise(run(dropping), expected) and trees_equal_bitwise(run(model, keys[0]), expected)
    for a, b in ((run(dropping, keys[0]), expected), (run(dropping, keys[0]), run(dropping, keys[1]))):
        assert float(jnp.max(jnp.abs(a - b))) > 1e-3
    assert trees_equal_bitwise(run(dropping, keys[0]), run(dropping, keys[0]))
    logits, _ = dropping.prefill(TOKENS, dropping.init_cache())
    np.testing.assert_allclose(logits, expected[-1], atol=1e-6)


def test_every_branch_and_the_embedding_have_a_key_of_their_own():
    """Each `Dropout` alone changes the logits, and two of the same input do not drop the same features."""
    model = language_model([mlp(0), mlp(0)])
    places = [lambda it: it.embedding.dropout, lambda it: it.blocks[0].dropout, lambda it: it.blocks[1].dropout]
    found = [model.forward(TOKENS, model.init_cache())[0]]
    for place in places:
        one = eqx.tree_at(place, model, ssmkit.Dropout(0.5))
        found.append(one.forward(TOKENS, one.init_cache(), key=jax.random.key(1))[0])
    for i, a in enumerate(found):
        for b in found[:i]:
            assert float(jnp.max(jnp.abs(a - b))) > 1e-4


def test_dropout_keeps_the_mean_and_drops_the_share():
    x = jnp.ones((400, 100))
    y = ssmkit.Dropout(0.25, jax.random.key(0))(x)
    values, counts = np.unique(y, return_counts=True)
    np.testing.assert_allclose(values, [0.0, 1 / 0.75], rtol=1e-6)
    assert counts[0] / y.size == pytest.approx(0.25, abs=0.01)  # five standard deviations
    assert ssmkit.Dropout(0.25)(x) is x and ssmkit.Dropout(0.0, jax.random.key(0))(x) is x


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan"), "half", None])
def test_rates_out_of_range(rate):
    with pytest.raises((ValueError, TypeError), match=r"`?rate`? must be"):
        ssmkit.Dropout(rate)


def test_a_model_that_drops_nothing_is_refused_a_rate():
    with pytest.raises(ValueError, match=r"Linear has no `ssmkit.Dropout`. Give it one"):
        ssmkit.with_dropout(ssmkit.Linear(2, 2, key=jax.random.key(0)), 0.1)
    assert ssmkit.with_dropout(parallel(), 0.1).dropout.rate == 0.1


def test_multipliers_of_a_gated_mlp_are_factors_of_its_matrices():
    """The factors are powers of two, so that both ways round equally."""
    x = jax.random.normal(jax.random.key(1), (3, WIDTH))
    plain = mlp(0)
    scaled = eqx.tree_at(
        lambda it: (it.gate.weight, it.down.weight),
        plain,
        (jnp.multiply(plain.gate.weight, 0.5), jnp.multiply(plain.down.weight, 4.0)),
    )
    given = ssmkit.GatedMLP(WIDTH, intermediate_size=6, multipliers=(0.5, 4.0), key=jax.random.key(0))
    np.testing.assert_array_equal(given.prefill(x, ())[0], scaled.prefill(x, ())[0])
    with pytest.raises(ValueError, match=r"GatedMLP: `multipliers` must be 2 finite numbers, .*, got \(0.5,\)"):
        ssmkit.GatedMLP(WIDTH, intermediate_size=6, multipliers=(0.5,), key=jax.random.key(0))
