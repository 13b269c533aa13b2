"""What tests that run HF transformers beside this package share."""

import numpy as np


# As a share of the largest logit. Float32 against float32, summed in other orders: 1e-6 to 5e-6 was measured, the most
# where one of four groups of channels nearly vanishes before it is normalised.
BOUND = 2e-5


def hf_logits(theirs, tokens) -> np.ndarray:
    """HF's logits after every token of one sequence, without a cache."""
    import torch

    with torch.no_grad():
        return theirs(torch.from_numpy(np.array(tokens))[None], use_cache=False).logits[0].float().numpy()


def check(actual, expected, bound: float = BOUND):
    """The logits are within the bound."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= bound * np.max(np.abs(expected))
