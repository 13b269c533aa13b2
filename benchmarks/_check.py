"""No speed is reported for a wrong result.

The reference is ssmkit's forward pass in float32, which generation does not use: the logits after every token, by parts
of 500 tokens.
Float32 subjects must produce the same greedy tokens as the reference and as each other. Subjects that store weights in
fewer bits, and llama.cpp, may differ by a stated tolerance. Their prompt logits may differ by this fraction of the
largest logit. In the reference, the logit of each token that they choose must be within the same tolerance of the best.
"""

from collections.abc import Mapping

import numpy as np

from .peers import SUBJECTS
from .peers.ours import Model


EXACT = 2e-4  # of the largest logit, for float32: rounding, in sums of some thousands of terms, through 64 layers
_ROWS = 2  # of a batch are read again by the reference: its logits take `time x vocabulary` numbers each


def check_logits(reference: np.ndarray, found: Mapping[str, np.ndarray], tolerances: Mapping[str, float]) -> dict:
    """The distance of every subject's prompt logits from those of the reference, relative to the largest logit.

    **Raises:** `SystemExit` naming the subject whose distance is too large, and the place.
    """
    errors = {}
    scale = float(np.abs(reference).max())
    for name, logits in found.items():
        distance = np.abs(logits[:, : reference.shape[1]] - reference)
        errors[name] = float(distance.max()) / scale
        if not errors[name] <= tolerances[name]:
            row, entry = np.unravel_index(int(np.nan_to_num(distance, nan=np.inf).argmax()), distance.shape)
            raise SystemExit(
                f"{name}: the logit of token {entry} after prompt {row} is {logits[row, entry]:.6g}, and not "
                f"{reference[row, entry]:.6g}: off by {errors[name]:.1e} of the largest, more than {tolerances[name]}. "
                "No speed is reported for a wrong result."
            )
    return errors


def check_tokens(reference: Model, prompt: np.ndarray, found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The distance of every subject's worst token from the reference's best token, relative to the largest logit.

    Subjects may have decoded different numbers of tokens.

    **Raises:** `SystemExit` naming the subject, and its first wrong token.
    """
    exact = [name for name in found if SUBJECTS[name].tolerance is None]
    if exact:
        first = found[exact[0]]
        for name in exact[1:]:
            shared = min(first.shape[1], found[name].shape[1])
            differs = np.argwhere((found[name][:, :shared] != first[:, :shared]).T)
            if differs.size:
                token, row = differs[0]
                raise SystemExit(
                    f"{name} and {exact[0]} differ from token {token} of row {row} on: {found[name][row, token]} and "
                    f"{first[row, token]}. No speed is reported for different work."
                )
    return {name: _worst(reference, prompt, name, tokens) for name, tokens in found.items()}


def tolerance(name: str) -> float:
    """The tolerance of a subject's logits."""
    stated = SUBJECTS[name].tolerance
    return EXACT if stated is None else stated


def _worst(reference: Model, prompt: np.ndarray, name: str, tokens: np.ndarray) -> float:
    worst = 0.0
    for row in range(min(len(prompt), _ROWS)):
        sequence = np.concatenate([prompt[row], tokens[row]])
        logits = reference.logits(sequence)[prompt.shape[1] - 1 : -1]
        if tokens[row].max() >= logits.shape[1] or tokens[row].min() < 0:
            raise SystemExit(f"{name} produces ids outside the vocabulary")
        regret = logits.max(1) - logits[np.arange(len(logits)), tokens[row]]
        relative = regret / np.abs(logits).max(1)
        if not np.all(relative <= tolerance(name)):
            token = int(np.argmax(~(relative <= tolerance(name))))
            raise SystemExit(
                f"{name} chooses {tokens[row, token]} as token {token} of row {row}, and the reference "
                f"{logits[token].argmax()}: its logit is lower by {relative[token]:.1e} of the largest, more than "
                f"{tolerance(name)}. No speed is reported for a wrong result."
            )
        worst = max(worst, float(relative.max()))
    return worst
