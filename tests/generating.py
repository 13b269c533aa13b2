"""What the tests of generation share: two models, prompts, and what is expected of a generation."""

import contextlib
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import trees_close, trees_equal_bitwise

import ssmkit
from ssmkit.models import Mamba2, Mamba2Config, ToySSM


VOCAB = 29
# One batch size, one bucket and one sampler for almost everything: few executables are compiled.
BATCH, BOUND = 4, 1e-5
SHORT, LONG = 64, 1024
SAMPLER = ssmkit.Sampler(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.2)
ROWS = [
    [3, 1, 4, 1, 5],
    [9],
    [2, 6, 5, 3, 5, 8, 9, 7, 9, 3],
    [23, 8, 4],
]


@functools.cache
def mamba2():
    config = Mamba2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        state_size=8,
        head_dim=8,
        n_groups=2,
        pad_vocab_size_multiple=8,
    )
    model = Mamba2(config, key=jax.random.key(0))
    return eqx.tree_at(lambda m: m.head.weight, model, replace_fn=lambda weight: 10 * weight)


@functools.cache
def toy():
    model = ToySSM(VOCAB, width=16, layers=1, heads=2, key=jax.random.key(1))
    # A tied head says the last token again unless the block says more.
    model = eqx.tree_at(lambda m: m.blocks[0].mixer.out_proj.weight, model, replace_fn=lambda weight: 400 * weight)
    return eqx.tree_at(lambda m: m.embedding.weight, model, replace_fn=lambda weight: 20 * weight)


MODELS = {"mamba2": mamba2, "toy": toy}


CASES = [("mamba2", ssmkit.Greedy()), ("mamba2", SAMPLER), ("toy", ssmkit.Greedy())]


@pytest.fixture(scope="module")
def quick_compilation():
    """What is computed matters here, not how fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=list(MODELS))
def model(request):
    return MODELS[request.param]()


@pytest.fixture(params=CASES, ids=["mamba2-greedy", "mamba2-sampler", "toy-greedy"])
def case(request):
    """A model and the arguments that a sampler needs."""
    name, sampler = request.param
    return MODELS[name](), {"sampler": sampler, "key": jax.random.key(7) if sampler.needs_key else None}


@eqx.filter_jit
def _forward(model, tokens):
    return model(tokens)


@eqx.filter_jit
def _prefill(model, tokens, length):
    return model.prefill(tokens, model.init_cache(), length=length)


def padded(ids, width):
    return jnp.asarray(np.pad(np.asarray(ids, np.int32), (0, width - len(ids))))


def forward(model, ids):
    """Logits after every token. A causal model does not see the padding."""
    return np.asarray(_forward(model, padded(ids, SHORT if len(ids) <= SHORT else LONG)))[: len(ids)]


def prefill(model, ids):
    return _prefill(model, padded(ids, SHORT if len(ids) <= SHORT else LONG), jnp.asarray(len(ids), jnp.int32))


def naive(model, prompt, count):
    """Greedy tokens by forwarding everything for each; the gap to the second best says whether rounding matters."""
    ids, gaps = list(prompt), []
    for _ in range(count):
        logits = forward(model, ids)[-1]
        second, first = np.sort(logits)[-2:]
        gaps.append(first - second)
        ids.append(int(np.argmax(logits)))
    return ids[len(prompt) :], min(gaps)


def assert_greedy(model, prompt, tokens):
    """Every token is the best after those before it, up to rounding."""
    logits = forward(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
    chosen = logits[np.arange(len(tokens)), tokens]
    np.testing.assert_allclose(chosen, logits.max(axis=-1), rtol=0, atol=1e-3)


def row(tree, i):
    return jax.tree.map(lambda x: np.asarray(x[i]), tree)


def assert_same(a, b):
    assert trees_equal_bitwise(a, b)


def assert_close(a, b):
    assert trees_close(a, b, BOUND)


def assert_consumed(model, prompt, tokens, generation, i=0):
    """The documented invariant: cache and logits are those of the prompt and the row's tokens."""
    logits, cache = prefill(model, [*prompt, *tokens])
    assert_close(row((generation.cache, generation.rows.logits), i), (cache, logits))


def cut(tokens, stops):
    """What a stop token leaves of each row of an uninterrupted generation: lengths, flags and filled tokens."""
    lengths, finished, filled = [], [], np.array(tokens)
    for line in filled:
        hits = np.flatnonzero(np.isin(line, stops))
        end = hits[0] + 1 if hits.size else len(line)
        line[end:] = line[end - 1]
        lengths.append(end)
        finished.append(hits.size > 0)
    return np.array(lengths), np.array(finished), filled


def middle_stop(tokens):
    """An id that ends some rows in the middle, but not all; not 0, which buffers hold anyway."""
    for stop in range(1, VOCAB):
        lengths, finished, _ = cut(tokens, [stop])
        inside = (lengths > 1) & (lengths < tokens.shape[1])
        if inside.any() and not finished.all():
            return stop
    raise AssertionError("no such id: choose another model or key")


class Counting(ssmkit.AbstractLanguageModel[Any]):
    """After each id the next one, and the end of its text at 5 and 9."""

    vocab_size: int = eqx.field(static=True, default=VOCAB)

    @property
    def stop_tokens(self):
        return (5, 9)

    def init_cache(self):
        return ()

    def prefill(self, tokens, cache, extent=ssmkit.Extent()):
        last = tokens.shape[0] if extent.length is None else extent.length
        return self.step(tokens[jnp.maximum(last, 1) - 1], cache)

    def step(self, token, cache, valid=None):
        return jax.nn.one_hot(token + 1, VOCAB, dtype=jnp.float32), cache

    def forward(self, tokens, cache, extent=ssmkit.Extent(), *, key=None):
        return jax.nn.one_hot(tokens + 1, VOCAB, dtype=jnp.float32), cache


@contextlib.contextmanager
def compilations():
    events = []

    def listen(event: str, duration_secs: float, *, fun_name: str = "", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
