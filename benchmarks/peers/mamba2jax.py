"""mamba2-jax, the library published with arXiv 2603.09555."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mamba2_jax
import numpy as np
from flax import nnx

from .._checkpoint import Checkpoint, read_config, read_tensors


class Model:
    """mamba2-jax's cached forward pass, jitted: one call per token, or all tokens in one `fori_loop`."""

    def __init__(self, checkpoint: Checkpoint, *, weights: str = "float32", device_loop: bool = False):
        dtype = jnp.dtype(weights)
        self.parts = load(checkpoint.directory, dtype)
        self._device_loop = device_loop
        graph, _ = self.parts
        self._prefill = jax.jit(functools.partial(_advance, graph, cached=False))
        self._step = jax.jit(functools.partial(_advance, graph, cached=True), donate_argnums=2)
        self._loop = jax.jit(functools.partial(_loop, graph), static_argnums=3)

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """As `Subject.prefill`: the head sees the last position only."""
        return np.asarray(self._prefill(self.parts[1], jnp.asarray(tokens, jnp.int32), None)[0], np.float32)

    def begin(self, prompt: np.ndarray, new: int) -> Any:
        """As `Subject.begin`."""
        return jax.block_until_ready(self._prefill(self.parts[1], jnp.asarray(prompt, jnp.int32), None))

    def decode(self, start: Any, new: int) -> np.ndarray:
        """As `Subject.decode`."""
        logits, cache = start
        if self._device_loop:
            return np.asarray(self._loop(self.parts[1], logits, cache, new))
        chosen = []
        for _ in range(new):
            token = jnp.argmax(logits, axis=-1)[:, None]
            chosen.append(token)
            logits, cache = self._step(self.parts[1], token, cache)
        return np.asarray(jnp.concatenate(chosen, axis=1))


def load(directory: Path, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """The model's graph and its weights, every tensor of the checkpoint taken.

    Its own loader keeps float32 whatever `dtype` it is told: matrices are cast here.
    """
    config = read_config(directory)
    names = ("vocab_size", "hidden_size", "state_size", "head_dim", "expand", "conv_kernel", "num_hidden_layers")
    kept = {name: config[name] for name in (*names, "tie_word_embeddings", "layer_norm_epsilon")}
    model = mamba2_jax.create_random_model(mamba2_jax.Mamba2Config(**kept))
    # It knows the embedding by the name that the original code gives it.
    tensors = {
        name.replace("backbone.embeddings.", "backbone.embedding."): tensor for name, tensor in read_tensors(directory)
    }
    mamba2_jax.load_pytorch_weights(model, tensors, strict=True)
    graph, weights = nnx.split(model)
    return graph, jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, weights)


def _advance(graph: Any, weights: Any, tokens: jax.Array, cache: Any, *, cached: bool) -> tuple[jax.Array, Any]:
    """The logits after the last token, and the cache."""
    model = nnx.merge(graph, weights)
    result = model.backbone(tokens, cache=cache if cached else None)
    hidden = result["last_hidden_state"][:, -1]
    return hidden @ model.backbone.embedder.embedding[...].T, result["cache"]


def _loop(graph: Any, weights: Any, logits: jax.Array, cache: Any, new: int) -> jax.Array:
    """All tokens in one program."""

    def body(i: jax.Array, carry: Any) -> Any:
        logits, cache, chosen = carry
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits, cache = _advance(graph, weights, token[:, None], cache, cached=True)
        return logits, cache, chosen.at[:, i].set(token)

    chosen = jnp.zeros((logits.shape[0], new), jnp.int32)
    return jax.lax.fori_loop(0, new, body, (logits, cache, chosen))[2]
