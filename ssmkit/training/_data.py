"""A text as training batches."""

import numpy as np
from jaxtyping import Int

from .._config import checks_itself
from .._ids import read_ids
from ._config import TrainConfig


class Windows:
    """Windows of `context + 1` tokens of one long text, in a new order and at a new phase every epoch.

    The batch of a step depends on the seed and the step only, so that a resumed run sees the same batches as an
    uninterrupted run.
    """

    @checks_itself
    def __init__(self, tokens: Int[np.ndarray, " time"], *, batch_size: int, context: int, seed: int):
        """Cut a text into windows.

        **Raises:** `ValueError` when the text is shorter than one batch.
        """
        self._tokens = np.asarray(tokens, np.int32)
        self._batch_size = batch_size
        self._context = context
        self._seed = seed
        self._epoch = -1, np.zeros(0, np.int64)  # the last one, which the next batch is mostly of
        # One window is left out for the phase.
        self.batches_per_epoch = ((len(self._tokens) - 1) // context - 1) // batch_size
        if self.batches_per_epoch < 1:
            needed = (batch_size + 1) * context + 1
            raise ValueError(
                f"the training text has {len(self._tokens)} tokens, too few for one batch of {batch_size} windows of "
                f"{context}: at least {needed} are needed. Lower `batch_size` or `context`."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a batch."""
        return self._batch_size, self._context + 1

    def batch(self, step: int, rows: slice = slice(None)) -> Int[np.ndarray, "batch context_plus_one"]:
        """The tokens of one step, or of some of its rows."""
        epoch, index = divmod(step, self.batches_per_epoch)
        starts = self._starts(epoch)[index * self._batch_size : (index + 1) * self._batch_size][rows]
        return np.stack([self._tokens[start : start + self._context + 1] for start in starts])

    def _starts(self, epoch: int) -> Int[np.ndarray, " windows"]:
        """The first tokens of an epoch's windows, in their order."""
        if self._epoch[0] != epoch:
            random = np.random.default_rng([self._seed, epoch])
            phase = random.integers(self._context)
            order = random.permutation(self.batches_per_epoch * self._batch_size)
            self._epoch = epoch, phase + self._context * order
        return self._epoch[1]


@checks_itself
def check_texts(
    config: TrainConfig, train: Int[np.ndarray, " train_time"], valid: Int[np.ndarray, " valid_time"], vocab_size: int
) -> Windows:
    """Check the texts of a run, and cut them into batches.

    **Arguments:**

    - `config`, `train`, `valid`: as for `fit`.
    - `vocab_size`: the model's number of ids.

    **Raises:** `ValueError` when either text is too short, or holds an id that the model does not have.
    """
    train, valid = (
        np.asarray(read_ids(f"the {name} text", text, "time", least=least, vocab_size=vocab_size))
        for name, text, least in (("training", train, 0), ("validation", valid, 2))
    )
    return Windows(train, batch_size=config.batch_size, context=config.context, seed=config.seed)
