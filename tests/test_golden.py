"""A checkpoint, logits and greedy tokens of HF transformers, kept in `golden`: needs neither it nor PyTorch."""

import pathlib

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import ssmkit


GOLDEN = pathlib.Path(__file__).parent / "golden"
# As a share of the largest logit: float32 against float32, summed in other orders.
BOUND = 2e-5


@pytest.fixture(scope="module")
def model():
    return ssmkit.from_pretrained(GOLDEN / "mamba2")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "mamba2_golden.npz") as file:
        return dict(file)


def check(actual, expected):
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= BOUND * np.max(np.abs(expected))


def test_logits_after_the_last_token(model, golden):
    prefill = eqx.filter_jit(lambda m, tokens, length: m.prefill(tokens, m.init_cache(), length=length)[0])
    tokens = jnp.asarray(golden["tokens"].astype(np.int32))
    lengths = [int(name.removeprefix("logits_")) for name in golden if name.startswith("logits_")]
    assert lengths == [1, 2, 3, 17, 255, 256, 257, 611]
    for length in lengths:
        check(prefill(model, tokens, jnp.asarray(length)), golden[f"logits_{length}"][-1])


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_logits_after_every_token(model, golden, length):
    forward = eqx.filter_jit(lambda m, tokens: m(tokens))
    check(forward(model, jnp.asarray(golden["tokens"][:length].astype(np.int32))), golden[f"logits_{length}"])


def test_score(model, golden):
    score = ssmkit.score(model, golden["tokens"].astype(np.int32))
    assert score.tokens == 610
    np.testing.assert_allclose(score.nats, golden["nats"], rtol=1e-6)


def test_greedy_tokens(model, golden):
    prompts = [golden["tokens"][:length].tolist() for length in (1, 17)]
    out = ssmkit.generate(model, prompts, 64)
    np.testing.assert_array_equal(out.tokens, np.stack([golden["greedy_1"], golden["greedy_17"]]))
    np.testing.assert_array_equal(list(ssmkit.stream(model, prompts[1], 64)), golden["greedy_17"])
