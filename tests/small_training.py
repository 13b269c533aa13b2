"""A model that trains in a moment, and the settings of its runs."""

import contextlib

import equinox as eqx
import jax
import numpy as np
import pytest

import ssmkit
from ssmkit.models import Mamba2, Mamba2Config
from ssmkit.training import TrainConfig, fit


MODEL = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4, "head_dim": 4, "chunk_size": 16}
CONFIG = TrainConfig(
    MODEL,
    vocab_size=256,
    steps=8,
    batch_size=2,
    context=16,
    learning_rate=1e-2,
    warmup_steps=2,
    evaluate_every=4,
    checkpoint_every=3,
    log_every=2,
)
TEXT = np.tile(np.arange(12, dtype=np.int32), 20)


class Bigram(ssmkit.AbstractLanguageModel[None]):
    """Sees one token back: enough to train, and compiled in a moment."""

    vocab_size: int = eqx.field(static=True)
    embedding: ssmkit.Embedding
    head: ssmkit.Linear

    def __init__(self, vocab_size, width):
        self.vocab_size = vocab_size
        self.embedding = ssmkit.Embedding(vocab_size, width, key=jax.random.key(0))
        self.head = ssmkit.Linear(width, vocab_size, use_bias=True, key=jax.random.key(1))

    def init_cache(self):
        return None

    def prefill(self, tokens, cache, extent=ssmkit.Extent()):
        raise NotImplementedError

    def step(self, token, cache, *, valid=None):
        raise NotImplementedError

    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        return self.head(ssmkit.Dropout(self.embedding.dropout.rate, key)(self.embedding(tokens))), cache


def ignore(progress):
    pass


def make_mamba2(config, vocab_size):
    return Mamba2(Mamba2Config(vocab_size=vocab_size, **config.model), key=jax.random.key(config.seed))


@pytest.fixture(scope="module")
def model():
    return Bigram(12, 8)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):
    return fit(model, CONFIG, TEXT, TEXT[:50], tmp_path_factory.mktemp("whole"), ignore)


class Killed(Exception):
    pass


@contextlib.contextmanager
def dying(step, error=Killed):
    """A `report` that raises after a step."""

    def report(progress):
        if progress.step == step:
            raise error

    with pytest.raises(error):
        yield report
