"""Write the configuration, logits and greedy tokens of small hybrids by HF transformers, for tests without it.

Needs PyTorch and transformers. Run as `PYTHONPATH=tests python tests/golden/make_hybrids.py FAMILY...`.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
from hf_models import hf_logits
from hybrid_variants import VARIANTS, hf_model


FOLDER = pathlib.Path(__file__).parent / "hybrids"
LENGTHS = (1, 17, 130)
NEW = 16


def make(name: str):
    """The configuration as HF writes it, logits after the last token, and greedy tokens."""
    with tempfile.TemporaryDirectory() as directory:
        model = hf_model(VARIANTS[name], pathlib.Path(directory))
        content = json.loads(pathlib.Path(directory, "config.json").read_text())
    tokens = np.random.default_rng(3).integers(0, content["vocab_size"], max(LENGTHS))
    arrays = {"tokens": tokens.astype(np.uint8)}
    for length in LENGTHS:
        arrays[f"logits_{length}"] = hf_logits(model, tokens[:length])[-1]
    sequence = list(tokens[:17])
    for _ in range(NEW):
        logits = hf_logits(model, sequence)[-1]
        second, first = np.sort(logits)[-2:]
        if first - second < 1e-3 * np.max(np.abs(logits)):
            raise SystemExit(f"{name}: a greedy step is nearly a tie")
        sequence.append(int(np.argmax(logits)))
    arrays["greedy"] = np.asarray(sequence[17:], np.uint8)
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    for family in sys.argv[1:]:
        make(family)
