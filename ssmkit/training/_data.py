"""A text as training batches."""

import numpy as np
from jaxtyping import Int


class Windows:
    """Windows of `context + 1` tokens of one long text, in a new order and at a new phase every epoch.

    The batch of a step depends on the seed and the step only, so that a resumed run sees what an uninterrupted one
    would.
    """

    def __init__(self, tokens: Int[np.ndarray, " time"], *, batch_size: int, context: int, seed: int):
        """**Raises:** `ValueError` when the text is shorter than one batch."""
        self._tokens = np.asarray(tokens, np.int32)
        self._batch_size = batch_size
        self._context = context
        self._seed = seed
        # One window is left out for the phase.
        self.batches_per_epoch = ((len(self._tokens) - 1) // context - 1) // batch_size
        if self.batches_per_epoch < 1:
            needed = (batch_size + 1) * context + 1
            raise ValueError(
                f"the training text has {len(self._tokens)} tokens, too few for one batch of {batch_size} windows of "
                f"{context}: at least {needed} are needed. Lower `batch_size` or `context`."
            )

    def batch(self, step: int) -> Int[np.ndarray, "batch context_plus_one"]:
        """The tokens of one step."""
        epoch, index = divmod(step, self.batches_per_epoch)
        random = np.random.default_rng([self._seed, epoch])
        phase = random.integers(self._context)
        order = random.permutation(self.batches_per_epoch * self._batch_size)
        starts = phase + self._context * order[index * self._batch_size : (index + 1) * self._batch_size]
        return np.stack([self._tokens[start : start + self._context + 1] for start in starts])
