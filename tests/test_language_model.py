"""A language model out of any mixers: what stands around them, and which of them fit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import VOCAB, WIDTH, jit, relative_error, trees_equal_bitwise

import ssmkit
from ssmkit.models import GLAMixer, RGLRUMixer


KEY = jax.random.key(0)


def model(*mixers, **options) -> ssmkit.LanguageModel:
    return ssmkit.LanguageModel(
        VOCAB, WIDTH, mixers or [ssmkit.GatedMLP(WIDTH, intermediate_size=5, key=KEY)], key=KEY, **options
    )


# What stands around the mixers.


TOKENS = jnp.asarray([3, 1, 4, 1, 5])


def everywhere(m) -> np.ndarray:
    """Logits after every token, by `__call__`, and after the last by `prefill` and `step`."""

    def run(tokens):
        logits = m(tokens)
        last, _ = m.prefill(tokens, m.init_cache())
        _, cache = m.prefill(tokens[:-1], m.init_cache())
        return logits, last, m.step(tokens[-1], cache)[0]

    logits, *last = map(np.asarray, jit(run)(TOKENS))
    assert all(relative_error(row, logits[-1]) <= 2e-6 for row in last)
    return logits


def test_soft_capping():
    plain, capped = (everywhere(model(final_logit_softcapping=cap)) for cap in (None, 0.5))
    np.testing.assert_allclose(capped, 0.5 * np.tanh(np.asarray(plain, np.float64) / 0.5), atol=2e-7)
    assert np.abs(plain).max() > 0.6 > np.abs(capped).max()


def test_a_scaled_embedding():
    """Also a narrow one is scaled in float32."""
    plain = model()
    scaled = model(embedding_multiplier=5.5)
    by_hand = eqx.tree_at(lambda m: m.embedding.weight, plain, replace_fn=lambda weight: 5.5 * weight)
    assert relative_error(everywhere(scaled), everywhere(by_hand)) <= 2e-6
    assert relative_error(everywhere(scaled), everywhere(plain)) > 0.01
    narrow = model(embedding_multiplier=5.5, dtype=jnp.bfloat16)
    assert narrow._embed(TOKENS).dtype == jnp.float32


def test_a_norm_after_the_embedding():
    """RWKV's `ln0`: what the residual stream starts with is normalised, and its weights are parameters."""
    m = model(embedding_norm=ssmkit.LayerNorm)
    m = eqx.tree_at(lambda m: m.embedding_norm.bias, m, jnp.arange(WIDTH, dtype=jnp.float32))
    rows = np.asarray(m.embedding.weight, np.float64)[np.asarray(TOKENS)]
    rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5) + np.arange(WIDTH)
    assert relative_error(m._embed(TOKENS), rows) <= 1e-6
    plain = eqx.tree_at(lambda m: (m.embedding.weight, m.embedding_norm), m, (jnp.eye(5, WIDTH), None))
    plain = eqx.tree_at(lambda m: m.embedding.weight, plain, jnp.asarray(rows, jnp.float32))
    expected = jit(lambda tokens: plain(tokens))(jnp.arange(5))
    assert relative_error(everywhere(m), expected) <= 2e-6


def test_gradients_reach_what_stands_around():
    m = model(embedding_norm=ssmkit.RMSNorm, embedding_multiplier=3.0, final_logit_softcapping=2.0)
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.sum(m(TOKENS)[:, 2] ** 2)))(m)
    assert jnp.any(gradient.embedding_norm.weight != 0) and jnp.any(gradient.embedding.weight != 0)
    assert gradient.embedding_multiplier == 3.0  # static: no leaf


def test_tokens_may_be_a_list():
    m = model()
    expected, _ = m.prefill(TOKENS, m.init_cache())
    got, _ = m.prefill(TOKENS.tolist(), m.init_cache())
    np.testing.assert_array_equal(got, expected)


def test_without_hooks_nothing_is_computed():
    """The defaults leave the program as it is."""
    plain, named = (
        jax.jit(lambda tokens, m=m: m(tokens)).lower(TOKENS).as_text()
        for m in (model(), model(embedding_multiplier=1.0, embedding_norm=None, final_logit_softcapping=None))
    )
    assert plain == named and plain.count("tanh") == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"final_logit_softcapping": 0.0}, "`final_logit_softcapping` must be a number above 0, .* got 0.0"),
        ({"embedding_multiplier": float("nan")}, "`embedding_multiplier` must be a number above 0, .* got nan"),
        ({"embedding_multiplier": -2}, "`embedding_multiplier` must be a number above 0, .* got -2"),
    ],
)
def test_hooks_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_a_norm_is_not_what_makes_one():
    with pytest.raises(TypeError, match="`embedding_norm` must make a norm of a given width"):
        model(embedding_norm=ssmkit.LayerNorm(WIDTH))


# Which mixers fit.


class Returning(ssmkit.AbstractMixer):
    """Whatever a function makes of features and cache, by `prefill`, `step` or both."""

    make: object = eqx.field(static=True)
    methods: tuple = eqx.field(static=True, default=("prefill", "step"))

    def init_cache(self):
        return {"a": jnp.zeros((3,), jnp.float32)}

    def prefill(self, x, cache, extent=ssmkit.Extent()):
        return self.make(x, cache) if "prefill" in self.methods else (x, cache)

    def step(self, x, cache, *, valid=None):
        return self.make(x, cache) if "step" in self.methods else (x, cache)


OTHER = WIDTH + 4
UNFIT = {
    "gla": (
        lambda: GLAMixer(OTHER, num_heads=2, key=KEY),
        rf"\(GLAMixer\) is made for features of width {OTHER}, .*`width` = {WIDTH}",
    ),
    "mlp": (
        lambda: ssmkit.GatedMLP(OTHER, intermediate_size=5, key=KEY),
        rf"\(GatedMLP\) is made for features of width {OTHER}, ",
    ),
    "rg-lru": (lambda: RGLRUMixer(6, num_heads=2, key=KEY), r"\(RGLRUMixer\) is made for .* of width 6, "),
    "features": (
        lambda: Returning(lambda x, c: (x[..., :3], c)),
        rf"prefill must return floating-point features of shape \(1, {WIDTH}\), .* got float32 of shape \(1, 3\)",
    ),
    "integers": (lambda: Returning(lambda x, c: (x.astype(int), c)), r"floating-point features of .* got int64 of"),
    "one": (lambda: Returning(lambda x, c: x), "must return features and the new cache, got "),
    "step": (
        lambda: Returning(lambda x, c: (x[:3], c), ("step",)),
        rf"step must return .* shape \({WIDTH},\), .* \(3,\)",
    ),
    "cache": (lambda: Returning(lambda x, c: (x, (c["a"],))), "prefill must return a cache of the structure .* got "),
    "cache dtype": (
        lambda: Returning(lambda x, c: (x, {"a": c["a"].astype(jnp.bfloat16)})),
        r"`cache\['a'\]` is float32 of shape \(3,\) in `init_cache`, got bfloat16 of shape \(3,\)",
    ),
    "grows": (
        lambda: Returning(lambda x, c: (x, {"a": jnp.concatenate([c["a"], x[..., 0].reshape(1)])})),
        r"`cache\['a'\]` is float32 of shape \(3,\) in `init_cache`, got float32 of shape \(4,\)",
    ),
    "fails": (
        lambda: Returning(lambda x, c: x.nothing),
        r"prefill fails with one token .* AttributeError: .* nothing",
    ),
}


@pytest.mark.parametrize("make, message", UNFIT.values(), ids=list(UNFIT))
def test_a_mixer_that_does_not_fit(make, message):
    with pytest.raises(ValueError, match=r"^`mixers\[1\]` .*" + message):
        model(ssmkit.GatedMLP(WIDTH, intermediate_size=3, key=KEY), make())


def test_mixers_of_equal_structure_are_tried_once():
    tried = []
    mixers = [Returning(lambda x, c: (x, c)), Returning(lambda x, c: tried.append(x.shape) or (x, c))]
    model(*mixers, *(3 * [mixers[1]]))
    assert tried == [(1, WIDTH), (WIDTH,)]


def test_trying_changes_nothing():
    """A model of abstract parameters can be made, and the mixers are those that were given."""
    abstract = eqx.filter_eval_shape(lambda key: model(ssmkit.GatedMLP(WIDTH, intermediate_size=5, key=key)), KEY)
    concrete = model()
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    assert trees_equal_bitwise(concrete.blocks[0].mixer, ssmkit.GatedMLP(WIDTH, intermediate_size=5, key=KEY))
