"""ssmkit, by its public functions."""

import contextlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import ssmkit

from .._checkpoint import Checkpoint
from .._environment import on_cpu


_PART = 500  # no multiple of a chunk


class Model:
    """`ssmkit.generate` and `ssmkit.resume`; without `engine`, prompts go through a jitted `model.prefill`."""

    def __init__(self, checkpoint: Checkpoint, *, weights: str = "float32", engine: bool = True):
        whole = checkpoint.model
        self.model = whole if weights == "float32" else ssmkit.quantize(whole, weights)
        # By default, a GPU multiplies float32 matrices in fewer bits.
        self._exact = weights == "float32" and not on_cpu()
        self._engine = engine

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """As `Subject.prefill`."""
        with self._precision():
            if self._engine:
                return np.asarray(ssmkit.generate(self.model, tokens, 0).rows.logits)
            return np.asarray(_prefill(self.model, jnp.asarray(tokens, jnp.int32)))

    def begin(self, prompt: np.ndarray, new: int) -> ssmkit.Generation:
        """As `Subject.begin`."""
        with self._precision():
            return jax.block_until_ready(ssmkit.generate(self.model, prompt, 0))

    def extend(self, start: ssmkit.Generation, tokens: np.ndarray) -> ssmkit.Generation:
        """Consume more tokens."""
        with self._precision():
            return jax.block_until_ready(ssmkit.generate(self.model, tokens, 0, cache=start.cache))

    def decode(self, start: ssmkit.Generation, new: int) -> np.ndarray:
        """As `Subject.decode`."""
        with self._precision():
            return np.asarray(ssmkit.resume(self.model, start, new).tokens)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """The logits after every token of one sequence, against which decoding is checked."""
        return np.concatenate([np.asarray(part) for part in self._parts(tokens)])[: len(tokens)]

    def last_logits(self, tokens: np.ndarray) -> np.ndarray:
        """The logits after one sequence, against which prefill is checked."""
        *_, last = self._parts(tokens)
        return np.asarray(last[(len(tokens) - 1) % _PART])

    def _parts(self, tokens: np.ndarray) -> Iterator[jax.Array]:
        """The logits of forward passes over parts of one sequence, which generation does not use.

        The last part is filled up, so that one executable serves every length: no logits depend on later tokens.
        """
        parts = np.pad(tokens, (0, -len(tokens) % _PART)).reshape(-1, _PART)
        cache = self.model.reserve(self.model.init_cache(), parts.size)
        for part in parts:
            with self._precision():
                logits, cache = _continue(self.model, jnp.asarray(part, jnp.int32), cache)
            yield logits

    def _precision(self) -> Any:
        return jax.default_matmul_precision("float32") if self._exact else contextlib.nullcontext()


@eqx.filter_jit
def _prefill(model: Any, tokens: jax.Array) -> jax.Array:
    one = lambda row: model.prefill(row, model.reserve(model.init_cache(), row.size))[0]
    return one(tokens[0])[None] if tokens.shape[0] == 1 else jax.vmap(one)(tokens)


@eqx.filter_jit
def _continue(model: Any, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    return model.forward(tokens, cache)
