"""Log-probabilities of the tokens generated, and of the most probable ones in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generating import ROWS, SAMPLER, forward, mamba2

import ssmkit
from ssmkit.generation._records import of_token


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("sampler", [ssmkit.Greedy(), SAMPLER], ids=["greedy", "sampler"])
def test_they_are_those_of_the_models_logits(sampler):
    """Before any sampler, in every place; 0 past a row's length. And nothing else changes."""
    model, key, limits = mamba2(), jax.random.key(7), [9, 3, 0, 12]
    out = ssmkit.generate(model, ROWS, limits, sampler, key=key, log_probs=3)
    plain = ssmkit.generate(model, ROWS, limits, sampler, key=key)
    assert plain.log_probs is None and plain.top_tokens is None and plain.top_log_probs is None
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    assert out.log_probs is not None and out.top_tokens is not None and out.top_log_probs is not None
    assert out.log_probs.shape == (4, 12) and out.top_tokens.shape == out.top_log_probs.shape == (4, 12, 3)
    for i, (prompt, length) in enumerate(zip(ROWS, limits, strict=True)):
        tokens = out.tokens[i, :length].tolist()
        logits = forward(model, [*prompt, *tokens])[len(prompt) - 1 : len(prompt) - 1 + length].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        best = -np.sort(-expected, axis=-1)[:, :3]
        places = np.arange(length)
        # The logits of chunks and of steps differ by some 1e-5 of the largest, which is about 20 here.
        close = dict(rtol=0, atol=1e-3)
        np.testing.assert_allclose(out.log_probs[i, :length], expected[places, tokens], **close)
        np.testing.assert_allclose(out.top_log_probs[i, :length], best, **close)
        top = np.take_along_axis(expected, np.asarray(out.top_tokens[i, :length]), axis=-1)
        np.testing.assert_allclose(top, best, **close)
        for array in (out.log_probs, out.top_tokens, out.top_log_probs):
            assert not np.any(array[i, length:])
    if isinstance(sampler, ssmkit.Greedy):
        np.testing.assert_array_equal(out.log_probs, out.top_log_probs[:, :, 0])


def test_without_the_best():
    out = ssmkit.generate(mamba2(), ROWS, 2, log_probs=0)
    assert out.log_probs is not None and out.log_probs.shape == (4, 2) and (np.asarray(out.log_probs) < 0).all()
    assert out.top_tokens is not None and out.top_tokens.shape == (4, 2, 0)


def test_parts_are_those_of_the_whole(tmp_path):
    model = mamba2()
    whole = ssmkit.generate(model, ROWS, 8, log_probs=2)
    start = ssmkit.generate(model, ROWS, 5, log_probs=2)
    end = ssmkit.resume(model, start, 3, log_probs=2)
    for name in ("log_probs", "top_tokens", "top_log_probs"):
        parts = np.concatenate([getattr(start, name), getattr(end, name)], axis=1)
        np.testing.assert_allclose(parts, getattr(whole, name), rtol=1e-5)
    ssmkit.save_cache(whole, tmp_path / "file")
    stored = ssmkit.load_cache(tmp_path / "file", model)
    for name in ("log_probs", "top_tokens", "top_log_probs"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(whole, name))


def test_all_of_them_in_their_order():
    """The lowest id first among equals."""
    logits = np.float32([[3, 1, 3, 2, 1]])
    found = of_token(jnp.array([3], jnp.int32), jnp.asarray(logits), 5)
    assert found.top_tokens is not None and found.top_tokens.tolist() == [[0, 2, 3, 1, 4]]
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    np.testing.assert_allclose(found.top_log_probs, -np.sort(-expected), rtol=1e-6)
    np.testing.assert_allclose(found.log_probs, expected[:, 3], rtol=1e-6)
