"""Language models that keep the laws, and such that are wrong in one way each."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from lawbreakers import VOCAB, WIDTH, Smooth

import ssmkit


# Language models.


class Model(ssmkit.AbstractLanguageModel[Any]):
    """`Smooth` between an embedding and its transpose."""

    embedding: Array
    mixer: Smooth
    vocab_size: int = eqx.field(static=True, default=VOCAB)

    def init_cache(self):
        return self.mixer.init_cache()

    def prefill(self, tokens, cache, extent=ssmkit.Extent()):
        y, cache = self.mixer.prefill(self.embedding[tokens], cache, extent)
        last = self.last(tokens.shape[0], extent.length)
        return self.embedding @ jax.lax.dynamic_index_in_dim(y, last, keepdims=False), cache

    def last(self, time, length):
        return time - 1 if length is None else jnp.maximum(length, 1) - 1

    def step(self, token, cache, valid=None):
        y, cache = self.mixer.step(self.embedding[token], cache, valid=valid)
        return self.embedding @ y, cache

    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        y, cache = self.mixer.prefill(self.embedding[tokens], cache)
        return y @ self.embedding.T, cache


class AnotherForward(Model):
    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        logits, cache = super().forward(tokens, cache)
        return jax.nn.log_softmax(logits), cache


class LeakingForward(Model):
    """By less than the tolerance."""

    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        logits, cache = super().forward(tokens, cache)
        return logits + 1e-6 * logits[-1:], cache


class LogitsOfThePadding(Model):
    def prefill(self, tokens, cache, extent=ssmkit.Extent()):
        return super().prefill(tokens, cache)[0], super().prefill(tokens, cache, extent)[1]


class LogitsOneTokenEarly(Model):
    def last(self, time, length):
        return jnp.maximum(super().last(time, length) - 1, 0)


def model(cls: type[Model]) -> Model:
    rng = np.random.default_rng(1)
    return cls(jnp.asarray(rng.normal(size=(VOCAB, WIDTH)), jnp.float32), Smooth())
