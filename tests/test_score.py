"""Scoring a text."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import ssmkit
from ssmkit.evaluation import _score
from ssmkit.evaluation._score import Score, cross_entropy, score


VOCAB = 23


class RunningSum(ssmkit.AbstractLanguageModel[Float[Array, " width"]]):
    """Remembers the whole past, and can be written down in one line of NumPy."""

    vocab_size: int = eqx.field(static=True)
    embedding: Float[Array, "vocab width"]

    def __init__(self, vocab_size, width):
        self.vocab_size = vocab_size
        self.embedding = jax.random.normal(jax.random.key(0), (vocab_size, width), jnp.float32)

    def init_cache(self):
        return jnp.zeros(self.embedding.shape[1], jnp.float32)

    def prefill(self, tokens, cache, extent=ssmkit.Extent()):
        raise NotImplementedError

    def step(self, token, cache, *, valid=None):
        raise NotImplementedError

    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        sums = cache[None] + jnp.cumsum(self.embedding[tokens], axis=0)
        return jnp.sin(sums) @ self.embedding.T, sums[-1]


@pytest.fixture(scope="module")
def model():
    return RunningSum(VOCAB, 5)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, VOCAB, 45)


def naive(model, tokens) -> float:
    """One pass over the whole text, in float64."""
    embedding = np.asarray(model.embedding, np.float64)
    logits = np.sin(np.cumsum(embedding[tokens[:-1]], axis=0)) @ embedding.T
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(-np.log(probabilities[np.arange(len(tokens) - 1), tokens[1:]]).sum())


def test_equals_one_pass(model, tokens):
    result = score(model, tokens)
    assert result.tokens == 44
    np.testing.assert_allclose(result.nats, naive(model, tokens), rtol=1e-5)


@pytest.mark.parametrize("piece", [7, 44])
def test_does_not_depend_on_pieces(model, tokens, piece, monkeypatch):
    monkeypatch.setattr(_score, "PIECE", piece)
    np.testing.assert_allclose(score(model, tokens).nats, naive(model, tokens), rtol=1e-5)


def test_progress(model, tokens, monkeypatch):
    monkeypatch.setattr(_score, "PIECE", 7)
    done = []
    score(model, tokens.tolist(), progress=done.append)
    assert done == [7, 14, 21, 28, 35, 42, 44]


def test_two_tokens(model):
    result = score(model, [3, 4])
    assert result.tokens == 1
    np.testing.assert_allclose(result.nats, naive(model, np.array([3, 4])), rtol=1e-5)


@pytest.mark.parametrize("tokens", [[], [1]])
def test_too_short(model, tokens):
    with pytest.raises(ValueError, match="at least 2"):
        score(model, tokens)


@pytest.mark.parametrize("bad", [-1, VOCAB])
def test_outside_the_vocabulary(model, bad):
    with pytest.raises(ValueError, match="model's tokenizer"):
        score(model, [0, bad, 1])


def test_not_a_number(model):
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model)
    with pytest.raises(FloatingPointError, match="NaN"):
        score(broken, [0, 1, 2])


def test_measures():
    result = Score(nats=20.0, tokens=10)
    assert result.nats_per_token == 2.0
    np.testing.assert_allclose(result.perplexity, np.exp(2.0))
    assert Score(nats=1e6, tokens=1).perplexity == np.inf


def test_cross_entropy_is_stable():
    logits = jnp.asarray([[1e4, 0.0], [-1e4, 0.0]], jnp.float32)
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray([0, 0])), [0.0, 1e4])
