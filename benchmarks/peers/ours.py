"""ssmkit, by its public functions."""

import contextlib
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import ssmkit

from .._environment import on_cpu


_PART = 500  # no multiple of a chunk


class Model:
    """`ssmkit.generate` and `ssmkit.resume`; without `engine`, prompts go through a jitted `model.prefill`."""

    def __init__(self, directory: Path, *, weights: str = "float32", engine: bool = True):
        self.model = ssmkit.from_pretrained(directory, **_loading(weights))
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
        with self._precision():
            return np.asarray(_forward(self.model, jnp.asarray(tokens, jnp.int32)))

    def last_logits(self, tokens: np.ndarray) -> np.ndarray:
        """The logits after one sequence, by forward passes over its parts, against which prefill is checked."""
        logits: Any = None
        cache = self.model.init_cache()
        with self._precision():
            for start in range(0, len(tokens), _PART):
                part = jnp.asarray(tokens[start : start + _PART], jnp.int32)
                logits, cache = _continue(self.model, part, cache)
        return np.asarray(logits[-1])

    def _precision(self) -> Any:
        return jax.default_matmul_precision("float32") if self._exact else contextlib.nullcontext()


def _loading(weights: str) -> dict[str, Any]:
    """The keywords of `from_pretrained`. Tensor cores multiply bfloat16; a CPU only stores it."""
    if weights == "float32" or (weights == "bfloat16" and not on_cpu()):
        return {"dtype": weights}
    return {"dtype": "float32", "quantize": weights}


@eqx.filter_jit
def _prefill(model: Any, tokens: jax.Array) -> jax.Array:
    one = lambda row: model.prefill(row, model.init_cache())[0]
    return one(tokens[0])[None] if tokens.shape[0] == 1 else jax.vmap(one)(tokens)


@eqx.filter_jit
def _forward(model: Any, tokens: jax.Array) -> jax.Array:
    return model(tokens)


@eqx.filter_jit
def _continue(model: Any, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    return model.forward(tokens, cache)
