"""Samplers against the logits processors of HF transformers, where it is installed."""

import jax.numpy as jnp
import numpy as np
import pytest

import ssmkit


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

VOCAB = 50
CASES = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_k": 80},
    {"top_p": 0.8},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"repetition_penalty": 1.3},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 2.0},
    {"temperature": 0.3, "top_k": 7, "top_p": 0.6, "min_p": 0.3, "repetition_penalty": 0.8},
]


@pytest.mark.parametrize("arguments", CASES, ids=lambda arguments: "-".join(arguments))
def test_the_same_logits_as_transformers(arguments):
    random = np.random.default_rng(0)
    logits = (3 * random.normal(size=(4, VOCAB))).astype(np.float32)
    ids = random.integers(0, VOCAB, (4, 9))
    # In the order in which `GenerationMixin` applies them.
    processors = {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    chain = transformers.LogitsProcessorList(
        [processor(arguments[name]) for name, processor in processors.items() if name in arguments]
    )
    expected = chain(torch.tensor(ids), torch.tensor(logits)).numpy()
    sampler = ssmkit.Sampler(**arguments)
    for row, history, target in zip(logits, ids, expected, strict=True):
        seen = jnp.asarray(np.isin(np.arange(VOCAB), history))
        np.testing.assert_allclose(sampler.filtered(jnp.asarray(row), seen), target, rtol=1e-6)
